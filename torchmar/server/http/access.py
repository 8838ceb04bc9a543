"""Access events: each response with its request, for the access log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from torchmar.server.http.request import Request

if TYPE_CHECKING:
    from torchmar.server.http.connection import Connection

CLIENT_GONE = 499  # what nginx calls it


class Access(NamedTuple):
    """A request and how it was answered.

    Attributes:
        time: when it was, in seconds since 1970.
        client: address of the peer.
        method: ``POST``; empty where the request was none.
        target: as it was sent, with its query.
        status: of the answer; 499 if the client went before it was complete.
        seconds: from the end of the headers to that of the answer.
        request_id: the answer's ``x-request-id``; empty if it has none.
    """

    time: float
    client: str
    method: str
    target: bytes
    status: int
    seconds: float
    request_id: str


OnAccess = Callable[[Access], None]


class ToldRequest(Request):
    """A request that tells the ``access`` of its listener once it is answered."""

    __slots__ = ("_came", "_id", "_status", "_told")

    def __init__(self, connection: Connection, *more: Any) -> None:
        super().__init__(connection, *more)
        self._came, self._status, self._id, self._told = time.monotonic(), 0, "", False

    def respond(
        self, status: int, body: bytes = b"", content_type: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Give the whole answer."""
        super().respond(status, body, content_type, headers)
        self._tell()

    def start(self, status: int, content_type: str = "", headers: Iterable[tuple[str, str]] = ()) -> None:
        """Begin an answer; where it has no body it is complete."""
        super().start(status, content_type, headers)
        self._tell()

    def end(self) -> None:
        """Complete the answer."""
        super().end()
        self._tell()

    def abort(self) -> None:
        """Cut the connection."""
        super().abort()
        self._tell()

    def leave(self) -> None:
        """Take note that the client has gone."""
        if not self._told:
            self._status = CLIENT_GONE
        super().leave()
        self._tell()

    def _head(self, status: int, content_type: str, headers: Iterable[tuple[str, str]]) -> bytes | None:
        headers = tuple(headers)
        self._status = status
        self._id = next((value for name, value in headers if name == "x-request-id"), "")
        return super()._head(status, content_type, headers)

    def _tell(self) -> None:
        tell = self._connection.listener.access
        if tell is None or self._told or not (self._given or self.gone):
            return
        self._told = True
        now = time.monotonic()
        tell(Access(time.time(), self.client, self.method, self.target, self._status, now - self._came, self._id))
