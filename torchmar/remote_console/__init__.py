"""The console for a server without one, or whose console browsers cannot reach; it is served on this machine.

`reader.py` reads a server by its APIs, `load.py` and `changes.py` make a history and events from two readings,
`logs.py` reads its log if the run folder is on this machine, and `store.py` its archives; `models.py` combines these.
`documents.py` has the documents of the console's API, `console.py` its routes, and `calls.py` sends calls to the
server's APIs. `forwarding.py` is for a server with a console of its own. `app.py` listens.
"""
