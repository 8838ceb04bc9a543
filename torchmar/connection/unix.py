"""HTTP over a Unix socket, for requests."""

from __future__ import annotations

import socket
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NewConnectionError


class UnixAdapter(HTTPAdapter):
    """An adapter that sends every request through one socket, for any host.

    Args:
        path: path of the socket.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._pool = _Pool(path)

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        """Return the connections to the socket."""
        return self._pool

    def get_connection(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        """Return the connections to the socket; called by requests before 2.32."""
        return self._pool

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()
        super().close()


class _Pool(HTTPConnectionPool):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> HTTPConnection:
        return _Connection(self._path)


class _Connection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self.timeout)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            raise NewConnectionError(self, error.strerror or str(error)) from error
        return connection
