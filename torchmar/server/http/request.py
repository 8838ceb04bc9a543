"""A request, in the form for route handlers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol
from urllib.parse import parse_qsl, unquote_to_bytes

from torchmar.server.api_error import ApiError
from torchmar.server.http.context import Context
from torchmar.server.http.responses import BODILESS, CHUNKED, JSON, LAST_CHUNK

_log = logging.getLogger("torchmar.server")

# The response: not started; its head was sent; all of it was sent, or the connection was aborted.
_PENDING, _STARTED, _COMPLETE = range(3)


class ResponseWriter(Protocol):
    """The interface through which a request sends its response."""

    def write_response(self, head: bytes, length: int, body: bytes) -> None:
        """Send a whole response; the writer adds the header ``connection``, here and in `write_head`.

        Args:
            head: status line and headers.
            length: length of the body, even if no body is sent.
            body: body; empty for a response to HEAD.
        """

    def write_head(self, head: bytes, *, close: bool = False) -> None:
        """Send the head of a response; a body may follow. ``close``: the connection ends after the response."""

    def write(self, data: bytes) -> None:
        """Send a part of a body."""

    def write_parts(self, parts: list[bytes]) -> None:
        """Send several parts of a body."""

    async def drain(self) -> None:
        """Wait until the client has received most of what was sent, or has disconnected."""

    def abort(self) -> None:
        """Close the connection at once."""


class RequestObserver(Protocol):
    """Callbacks for the end of a request."""

    def on_end(self, request: Request) -> None:
        """Record that the response is complete, or that the client has disconnected."""


class Request:
    """A request with its whole body, to be answered once: by `respond`, or by `start`, `send`... and `end`.

    Its methods are called in the server's loop. After the client has disconnected, responses are dropped without
    errors.

    Args:
        context: shared state of the listener.
        writer: sends the response.
        on_complete: called once, when the response is complete.
        client: address of the peer, ``127.0.0.1:40000``; ``unix`` behind a Unix socket.
        method: method, such as ``POST``.
        target: target in the request line, ``/predictions/m?x=1``.
        raw: all headers, in their order.
        fields: the first header of each name, by the name in lower case.
        http_1_0: whether the client uses HTTP/1.0.

    Attributes:
        content: body without its transfer encoding; for a large body, a view of the memory that it was received into.
        disconnected: whether the client has disconnected, or the connection was aborted.
        on_disconnect: called once if the client disconnects before the response is complete; set by the code that
            answers.
        observer: its ``on_end`` is called when the response is complete or the client has disconnected; None: there is
            none.
        received: time when its headers were complete, by `time.monotonic`.
        status: status of the response; 0 before it has started.
        response_headers: headers that were passed to `respond` or `start`.
    """

    __slots__ = (
        "_context",
        "_fields",
        "_http_1_0",
        "_on_complete",
        "_raw",
        "_state",
        "_writer",
        "client",
        "content",
        "disconnected",
        "method",
        "observer",
        "on_disconnect",
        "received",
        "response_headers",
        "status",
        "target",
    )

    def __init__(
        self,
        context: Context,
        writer: ResponseWriter,
        on_complete: Callable[[Request], None],
        client: str,
        method: str,
        target: bytes,
        raw: list[tuple[bytes, bytes]],
        fields: dict[bytes, bytes],
        http_1_0: bool,
    ) -> None:
        self._context, self._writer, self._on_complete = context, writer, on_complete
        self.client, self.method, self.target = client, method, target
        self._raw, self._fields, self._http_1_0 = raw, fields, http_1_0
        self._state = _PENDING
        self.content: bytes | memoryview = b""
        self.disconnected = False
        self.on_disconnect: Callable[[], None] | None = None
        self.observer: RequestObserver | None = None
        self.received = monotonic()
        self.status = 0
        self.response_headers: Sequence[tuple[str, str]] = ()

    # The request.

    def header(self, lower_case_name: str) -> str:
        """Return the value of a header; the first one if there are several, empty if there is none."""
        value = self._fields.get(lower_case_name.encode())
        return value.strip().decode("latin-1") if value else ""

    def header_values(self, lower_case_name: str) -> list[str]:
        """Return the values of all headers of a name, in their order."""
        raw_name = lower_case_name.encode()
        return [value.strip().decode("latin-1") for name, value in self._raw if name.lower() == raw_name]

    def set_header(self, lower_case_name: str, value: str) -> None:
        """Set a header in place of all that the client has sent with its name; later code only sees this one."""
        name, content = lower_case_name.encode(), value.encode("latin-1")
        self._fields[name] = content
        self._raw = [pair for pair in self._raw if pair[0].lower() != name] + [(name, content)]

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All headers in their order, names in the client's case."""
        return [(name.decode("latin-1"), value.strip().decode("latin-1")) for name, value in self._raw]

    @property
    def body(self) -> bytes:
        """The body as one object; for a large body this is a copy, unlike ``content``."""
        if not isinstance(self.content, bytes):
            self.content = bytes(self.content)
        return self.content

    def set_decoded_body(self, body: bytes) -> None:
        """Set a body whose Content-Encoding was removed, and the headers that describe it."""
        self.content = body
        size = str(len(body)).encode()
        self._fields.pop(b"content-encoding", None)
        if b"content-length" in self._fields:
            self._fields[b"content-length"] = size
        remaining = [(name, value) for name, value in self._raw if name.lower() != b"content-encoding"]
        self._raw = [(name, size if name.lower() == b"content-length" else value) for name, value in remaining]

    @property
    def path(self) -> str:
        """The path without percent encoding: ``/predictions/m``."""
        target = self.target.partition(b"?")[0]
        if not target.startswith(b"/") and b"://" in target:  # http://host/path, the form for proxies
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        return unquote_to_bytes(target.partition(b"#")[0]).decode("utf-8", "replace")

    @property
    def query(self) -> list[tuple[str, str]]:
        """The parameters of the query, in their order; one without a value has an empty value."""
        query = self.target.partition(b"?")[2].partition(b"#")[0]
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="replace") if query else []

    # The response.

    def respond(
        self,
        status: int,
        body: bytes = b"",
        content_type: str = "",
        headers: Sequence[tuple[str, str]] = (),
        *,
        revalidate: bool = False,
    ) -> None:
        """Send a whole response; with ``revalidate`` the client may cache it, but must check it before each use.

        A status below 200 or headers that would break the response (line breaks) are logged, and answered with 500.

        Raises RuntimeError if the response has started already.
        """
        head = self._head(status, content_type, headers, revalidate=revalidate)
        if head is None:
            return
        self._state = _COMPLETE
        if status in BODILESS:
            self._writer.write_head(head)
        else:
            self._writer.write_response(head, len(body), b"" if self.method == "HEAD" else body)
        self._on_complete(self)

    def start(self, status: int, content_type: str = "", headers: Sequence[tuple[str, str]] = ()) -> None:
        """Start a response of unknown length; otherwise the same as `respond`.

        It is sent in chunks; for clients with HTTP/1.0, it ends when the connection is closed.
        """
        head = self._head(status, content_type, headers)
        if head is None:
            return
        self._state = _STARTED
        if not self._http_1_0 and status not in BODILESS:
            head += CHUNKED
        self._writer.write_head(head, close=self._http_1_0)
        if self.method == "HEAD" or status in BODILESS:
            self._state = _COMPLETE
            self._on_complete(self)

    def send(self, chunk: bytes) -> None:
        """Send a part of the body; `drain` limits the unsent data. After the end, it has no effect."""
        if self._state != _STARTED or self.disconnected or not chunk:
            return
        if self._http_1_0:
            self._writer.write(chunk)
        else:
            self._writer.write_parts([b"%x\r\n" % len(chunk), chunk, b"\r\n"])

    def end(self) -> None:
        """Complete a response that `start` has started."""
        if self._state != _STARTED or self.disconnected:
            return
        self._state = _COMPLETE
        if not self._http_1_0:
            self._writer.write(LAST_CHUNK)
        self._on_complete(self)

    def respond_error(self, error: ApiError, headers: Sequence[tuple[str, str]] = ()) -> None:
        """Respond with an error, with its headers and ``headers``.

        A response that has started is aborted; a complete one is not changed.
        """
        if self._state == _PENDING:
            self.respond(error.status, error.body_for(self.target), JSON, (*error.headers.items(), *headers))
        else:
            self.abort()

    def fail(self, error: Exception) -> None:
        """Log an unexpected exception, and respond with 500."""
        _log.error("%s %s failed", self.method, self.path, exc_info=error)
        message = "The request failed; the server's log has the reason."
        self.respond_error(ApiError(500, "InternalServerException", message))

    def abort(self) -> None:
        """Abort the connection, the only way to show a client that a started response is incomplete."""
        if self._state != _COMPLETE and not self.disconnected:
            self._state = _COMPLETE
            self._writer.abort()

    async def drain(self) -> None:
        """Wait until the client has received most of the sent data, or has disconnected."""
        if not self.disconnected:
            await self._writer.drain()

    @property
    def complete(self) -> bool:
        """Whether the response is complete, or was aborted."""
        return self._state == _COMPLETE

    def disconnect(self) -> None:
        """Record that the client has disconnected, and call ``on_disconnect``."""
        self.disconnected = True
        if self.on_disconnect is not None:
            self.on_disconnect()

    def _head(
        self, status: int, content_type: str, headers: Sequence[tuple[str, str]], *, revalidate: bool = False
    ) -> bytes | None:
        """Return the head of the response; None if the client has disconnected or an error was sent instead."""
        if self._state != _PENDING:
            raise RuntimeError(f"{self.method} {self.path} has been answered already")
        if self.disconnected:
            return None
        self.status, self.response_headers = status, headers
        heads = self._context.heads.revalidated if revalidate else self._context.heads
        try:
            return heads[status, content_type] + heads.lines(headers) if headers else heads[status, content_type]
        except ValueError as error:
            self.fail(error)
            return None
