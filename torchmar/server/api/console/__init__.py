"""The console and its JSON API, below ``/console`` of the management API.

`pages.py` has the page and its sessions, `access.py` who may use them, `files.py` the files; `monitor.py` has the
routes for load, events and logs, with `stream.py`, the events for what changes; `app.py` has those for the models and
archives of this server, `documents.py` what they return, `trial.py` and `form.py` requests to models; `openapi.py`
describes the API. `source.py` is what consoles of other servers implement (`torchmar.remote_console`).
"""
