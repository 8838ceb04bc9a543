"""The console of a server that has none, or that browsers do not reach, served on this machine.

`reader.py` reads a server by its APIs, `load.py` and `changes.py` make a history and events of two readings, `logs.py`
reads its log where the run folder is here, `store.py` its archives; `models.py` is all of them. `documents.py` has the
documents of the console's API, `console.py` its routes, with `calls.py`: calls of the server's APIs. `forwarding.py` is
the console of a server that has this API itself. `app.py` listens.
"""
