"""The console and its JSON API, below ``/console`` of the management API.

`app.py` has the routes, `access.py` who may use them, `documents.py` what they return, `stream.py` the events for what
changes, `trial.py` requests to models, `files.py` the page; `openapi.py` describes the API.
"""
