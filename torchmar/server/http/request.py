"""A request, as route handlers see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote_to_bytes

from torchmar.server.api_error import ApiError
from torchmar.server.http.responses import BODILESS, CHUNKED, CLOSE, JSON, KEEP_ALIVE, LAST_CHUNK

if TYPE_CHECKING:
    from torchmar.server.http.connection import Connection

# Bodies from here on are written as they are, not copied behind their headers first.
_LARGE = 65_536
# How far the answer is.
_OWED, _BEGUN, _GIVEN = range(3)


class Request:
    """A request whose body is complete, to be answered once: by `respond`, or by `start`, `send`... and `end`.

    All of it belongs to the server's loop. Once the client has gone, answers go nowhere and raise nothing.

    Attributes:
        method: ``POST``.
        target: as it stands in the request line, ``/predictions/m?x=1``.
        body: without its transfer encoding.
        client: address of the peer, ``127.0.0.1:40000``; ``unix`` behind a Unix socket.
        gone: whether the client has disconnected, or was cut off.
        on_gone: called once if that happens before the answer is complete; for those who answer to set.
    """

    __slots__ = (
        "_connection",
        "_fields",
        "_keep_alive",
        "_one_zero",
        "_raw",
        "_state",
        "body",
        "client",
        "gone",
        "method",
        "on_gone",
        "target",
    )

    def __init__(
        self,
        connection: Connection,
        method: str,
        target: bytes,
        raw: list[tuple[bytes, bytes]],
        fields: dict[bytes, bytes],
        one_zero: bool,
        keep_alive: bool,
    ) -> None:
        self._connection = connection
        self.method = method
        self.target = target
        self._raw = raw
        self._fields = fields
        self._one_zero = one_zero
        self._keep_alive = keep_alive
        self._state = _OWED
        self.body = b""
        self.client = connection.client
        self.gone = False
        self.on_gone: Callable[[], None] | None = None

    def header(self, lower_case_name: str) -> str:
        """Return the header's value, the first one where there are several, empty where there is none."""
        return self._fields.get(lower_case_name.encode(), b"").strip().decode("latin-1")

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All headers in their order, names in the client's case."""
        return [(name.decode("latin-1"), value.strip().decode("latin-1")) for name, value in self._raw]

    def decoded(self) -> None:
        """Have the headers describe the body as it is after its Content-Encoding was removed."""
        size = str(len(self.body)).encode()
        self._fields.pop(b"content-encoding", None)
        if b"content-length" in self._fields:
            self._fields[b"content-length"] = size
        kept = [(name, value) for name, value in self._raw if name.lower() != b"content-encoding"]
        self._raw = [(name, size if name.lower() == b"content-length" else value) for name, value in kept]

    @property
    def path(self) -> str:
        """The path without percent encoding: ``/predictions/m``."""
        target = self.target.partition(b"?")[0]
        if not target.startswith(b"/") and b"://" in target:  # http://host/path, which proxies are sent
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        return unquote_to_bytes(target.partition(b"#")[0]).decode("utf-8", "replace")

    @property
    def query(self) -> list[tuple[str, str]]:
        """The parameters behind the ``?``, in their order; those without a value have an empty one."""
        query = self.target.partition(b"?")[2].partition(b"#")[0]
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="replace") if query else []

    def respond(
        self, status: int, body: bytes = b"", content_type: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Give the whole answer.

        A status below 200 or headers that would break the answer (line breaks) are logged, and answered with 500.

        Raises RuntimeError if the answer has begun already.
        """
        head = self._head(status, content_type, headers)
        if head is None:
            return
        connection = self._connection
        self._state = _GIVEN
        keep = self._keep_alive and not connection.listener.closing
        if status in BODILESS:
            connection.write(b"%b%b\r\n" % (head, KEEP_ALIVE if keep else CLOSE))
        else:
            length = len(body)
            if self.method == "HEAD":
                body = b""
            alive = b"connection: keep-alive\r\n" if keep else b"connection: close\r\n"
            if len(body) < _LARGE:
                connection.write(b"%b%bcontent-length: %d\r\n\r\n%b" % (head, alive, length, body))
            else:
                connection.write_all([b"%b%bcontent-length: %d\r\n\r\n" % (head, alive, length), body])
        connection.answered(keep)

    def start(self, status: int, content_type: str = "", headers: Iterable[tuple[str, str]] = ()) -> None:
        """Begin an answer of unknown length; as `respond` otherwise.

        It is sent in chunks, and to clients of HTTP/1.0 until the connection is closed.
        """
        head = self._head(status, content_type, headers)
        if head is None:
            return
        connection = self._connection
        self._state = _BEGUN
        if self._one_zero:
            self._keep_alive = False
        elif status not in BODILESS:
            head += CHUNKED
        # Stored here: a listener that begins to close in between does not change the header that was sent.
        self._keep_alive = self._keep_alive and not connection.listener.closing
        connection.write(b"%b%b\r\n" % (head, KEEP_ALIVE if self._keep_alive else CLOSE))
        if self.method == "HEAD" or status in BODILESS:
            self._state = _GIVEN
            connection.answered(self._keep_alive)

    def send(self, chunk: bytes) -> None:
        """Send a part of the answer; `drain` keeps them from piling up. Does nothing once the answer is complete."""
        if self._state != _BEGUN or self.gone or not chunk:
            return
        if self._one_zero:
            self._connection.write(chunk)
        else:
            self._connection.write_all([b"%x\r\n" % len(chunk), chunk, b"\r\n"])

    def end(self) -> None:
        """Complete the answer that was started."""
        if self._state != _BEGUN or self.gone:
            return
        self._state = _GIVEN
        if not self._one_zero:
            self._connection.write(LAST_CHUNK)
        self._connection.answered(self._keep_alive)

    def abort(self) -> None:
        """Cut the connection: the only way to tell a client that the answer it is being sent will not be whole."""
        if self._state != _GIVEN and not self.gone:
            self._state = _GIVEN
            self._connection.cut()

    async def drain(self) -> None:
        """Wait until the client has taken most of what was sent, or has gone."""
        if not self.gone:
            await self._connection.drained()

    def leave(self) -> None:
        """Take note that the client has gone, and tell who still works for it."""
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()

    @property
    def _given(self) -> bool:
        return self._state == _GIVEN

    def refuse(self, refusal: ApiError, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Answer with ``refusal``, its headers and ``headers``.

        An answer that has begun is cut, a complete one stays as it is.
        """
        if self._state == _OWED:
            body = refusal.body_for(self.target)
            self.respond(refusal.status, body, JSON, (*refusal.headers.items(), *headers))
        else:
            self.abort()

    def _head(self, status: int, content_type: str, headers: Iterable[tuple[str, str]]) -> bytes | None:
        """Return the head of the response; None if the client has disconnected or an error has been sent."""
        if self._state != _OWED:
            raise RuntimeError(f"{self.method} {self.path} has been answered already")
        if self.gone:
            return None
        heads = self._connection.heads
        try:
            return heads[status, content_type] + heads.lines(headers) if headers else heads[status, content_type]
        except ValueError as wrong:
            self._connection.fault(self, wrong)
            return None
