"""Logs, metrics and statistics of the server."""
