"""The console and its JSON API, below ``/console`` of the management API.

`pages.py` serves the page and its sessions, `access.py` checks requests, `files.py` serves the files; `monitor.py` has
the routes for load, events and logs, with `stream.py`, the stream of changes; `app.py` has the routes for the models
and archives of this server, `documents.py` their documents, `trial.py` and `form.py` requests to models; `openapi.py`
describes the API. `source.py` is the interface for consoles of other servers (`torchmar.remote_console`).
"""
