"""The parser from a client's bytes to requests, within limits on sizes; HTTP/1.1 and 1.0 on httptools."""

from __future__ import annotations

import contextlib
import logging
import mmap
from collections.abc import Callable
from typing import Protocol

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from torchmar.server.api_error import ApiError, not_allowed
from torchmar.server.http import content_coding
from torchmar.server.http.limits import Limits
from torchmar.server.http.request import Request

_log = logging.getLogger("torchmar.server")

# The next input: a request; more headers; the repeated headers of a request for another protocol; more of the body;
# more of a body that is not needed, because its request has its response already; or no further input.
IDLE, HEAD, REPLAY, BODY, DISCARD, CLOSED = range(6)
# Size of a body from which on the receiver may respond before it arrives.
_LONG = 4096
# Number of pieces of a body that are joined as they arrive: a million pieces of two bytes would otherwise take fifty
_PIECES = 1024


# Makes a request from its method, target, headers (all, and by name) and whether it uses HTTP/1.0.
NewRequest = Callable[[str, bytes, list[tuple[bytes, bytes]], dict[bytes, bytes], bool], Request]


class _StoppedError(Exception):
    """Ends httptools' work when all further input is ignored."""


class RequestReceiver(Protocol):
    """Callbacks of a parser."""

    def head_received(self, request: Request, keep_alive: bool) -> bool:
        """Respond to a request before its body arrives, or return False.

        The body is discarded after a response. If the receiver ends the connection, as it must unless ``keep_alive``,
        it stops the parser instead.
        """

    def expect_continue(self) -> None:
        """Send 100 (Continue), for which the client waits before it sends the body."""

    def request_received(self, request: Request, keep_alive: bool) -> None:
        """Answer a complete request; with ``keep_alive``, the client may send more requests."""


class RequestParser:
    """The parser of one connection.

    Args:
        limits: limits on sizes.
        receiver: receives the requests.
        new_request: creates the requests.

    Attributes:
        state: `IDLE`, `HEAD`, `REPLAY`, `BODY`, `DISCARD` or `CLOSED`.
        active: set when a request begins and when its body grows; timeouts read and reset it.
    """

    __slots__ = (
        "_body_size",
        "_decoder",
        "_feed_size",
        "_header_bytes",
        "_keep_alive",
        "_length",
        "_limits",
        "_make_request",
        "_new_request",
        "_parser",
        "_pieces",
        "_pieces_joined",
        "_raw",
        "_receiver",
        "_request",
        "_target",
        "active",
        "state",
    )

    def __init__(self, limits: Limits, receiver: RequestReceiver, new_request: NewRequest) -> None:
        self._limits, self._receiver, self._make_request = limits, receiver, new_request
        self._parser = HttpRequestParser(self)
        self.state, self.active = IDLE, True
        self._target, self._raw = b"", list[tuple[bytes, bytes]]()
        self._request: Request | None = None
        self._keep_alive = True
        self._pieces, self._pieces_joined, self._body_size = list[bytes | memoryview](), 0, 0
        self._length = 0  # length of the body, if the client has sent it and the body is not encoded
        self._decoder: content_coding.Decoder | None = None
        self._feed_size = self._header_bytes = 0
        self._new_request = False

    def feed(self, data: bytes) -> None:
        """Parse received data, and pass on complete requests. Raises ApiError."""
        self._feed_size = len(data)
        body_size = self._body_size
        self._parse(data)
        if self.state == HEAD:
            if self._new_request:
                self._new_request = False
            else:
                self._count_header_bytes(len(data))
        elif self.state in (BODY, DISCARD) and self._body_size == body_size:
            self._count_header_bytes(len(data))

    def discard(self, data: bytes) -> bytes:
        """Drop data of a body that is not needed, in the state `DISCARD`; return the rest, which is to be fed.

        A chunked body is also fed, because only parsing can find its end.
        """
        missing = self.missing
        if missing <= 0:
            return data
        self.active = True
        if len(data) < missing:
            self._body_size += len(data)
            return b""
        self.body_received()
        return data[missing:]

    def stop(self) -> None:
        """Ignore all further data."""
        self.state, self._request, self._pieces = CLOSED, None, []

    def close(self) -> None:
        """Stop, and drop the references that form cycles, so that all objects are freed at once."""
        self.stop()
        del self._parser, self._receiver, self._make_request

    def incomplete(self) -> tuple[str, bytes]:
        """Return method and target of the request that is being received, as far as they are known."""
        if self.state == HEAD:
            return self._parser.get_method().decode(), self._target
        return (self._request.method, self._request.target) if self._request else ("", b"")

    @property
    def missing(self) -> int:
        """The number of missing bytes of the body; not above 0 if its length is unknown."""
        return self._length - self._body_size

    def receive_body(self) -> memoryview:
        """Return the memory for the missing bytes of the body; the caller fills it, and calls `body_received`.

        The system provides the memory only as it is written to: a client does not occupy it by announcing a length.
        """
        memory = mmap.mmap(-1, self._length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # some systems have no such pages
                memory.madvise(mmap.MADV_HUGEPAGE)
        view = memoryview(memory)
        received = self._body_size
        view[:received] = b"".join(self._pieces)
        self._pieces, self._pieces_joined = [view], 1
        return view[received:]

    def body_received(self) -> None:
        """Pass on the request whose body is complete."""
        if self.state == CLOSED:
            return
        self._body_size = self._length
        # The old parser would still wait for the body.
        self._parser = HttpRequestParser(self)
        self.on_message_complete()

    # Callbacks of httptools. An exception in these ends the parser, and is raised by `_parse`.

    def on_url(self, piece: bytes) -> None:
        """Begin a request; its target arrives in one piece or in several."""
        if self.state == REPLAY:
            return
        if self.state == HEAD:
            self._target += piece
        else:
            self.state = HEAD
            self._target, self._raw = piece, []
            self._header_bytes = 0
            self._new_request = self.active = True
        if len(self._target) > self._limits.target:
            raise ApiError(414, "BadRequestException", f"The URL is longer than {self._limits.target} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        # Headers behind a body are trailers, which are ignored.
        if self.state == HEAD:
            self._raw.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the headers, and start the body. Raises ApiError."""
        if self.state == REPLAY:
            self.state = BODY
            return
        parser, raw, limits = self._parser, self._raw, self._limits
        if self._header_bytes + self._feed_size > limits.header:
            # Either the headers are too large, or other data arrived with them: now it is worth counting exactly.
            self._header_bytes = 0
            self._count_header_bytes(sum(len(name) + len(value) + 4 for name, value in raw))
        # Of several headers with the same name, the first counts.
        fields = {name.lower(): value for name, value in reversed(raw)}
        version = parser.get_http_version()
        method = parser.get_method()
        length = self._length = int(fields.get(b"content-length", 0))
        if length > limits.body:
            raise self._too_large()
        chunked = b"transfer-encoding" in fields
        if chunked:
            # httptools rejects ambiguous headers; all others have `chunked` as their last coding.
            if version == "1.0":
                raise ApiError(400, "BadRequestException", "HTTP/1.0 has no transfer-encoding.")
            if fields[b"transfer-encoding"].strip().lower() != b"chunked":
                raise ApiError(501, "BadRequestException", "The only transfer-encoding supported is chunked.")
        if version != "1.1" and version != "1.0":
            raise ApiError(505, "BadRequestException", f"HTTP/{version} is not supported.")
        if method == b"CONNECT":
            raise not_allowed("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
        self._decoder = None
        if b"content-encoding" in fields:
            coding = fields[b"content-encoding"].decode("latin-1")
            self._decoder = content_coding.decoder(coding, limits.body)
            if self._decoder is not None:
                self._length = 0
        waits = b"expect" in fields and version == "1.1"
        if waits and fields[b"expect"].strip().lower() != b"100-continue":
            raise ApiError(417, "BadRequestException", "The only expectation supported is 100-continue.")
        self._keep_alive = parser.should_keep_alive()
        self._request = self._make_request(method.decode(), self._target, raw, fields, version == "1.0")
        self._pieces, self._pieces_joined, self._body_size = [], 0, 0
        self._header_bytes = 0
        self.state = BODY
        if length >= _LONG or chunked or waits:
            self._begin_long_body(self._request, length, fields, waits)

    def _begin_long_body(self, request: Request, length: int, fields: dict[bytes, bytes], waits: bool) -> None:
        """Let the receiver respond before the body; if it does not, send 100 (Continue) to a waiting client."""
        # A client that waits may still send the body, or the next request in its place: after a response, its data is
        # ambiguous. A body that httptools regards as that of another protocol has no end.
        keep_alive = self._keep_alive and not waits
        if b"upgrade" in fields or not self._receiver.head_received(request, keep_alive):
            if waits:
                self._receiver.expect_continue()
        elif self.state == CLOSED:
            raise _StoppedError
        else:
            self._request, self._decoder, self._length = None, None, length
            self.state = DISCARD

    def on_body(self, piece: bytes) -> None:
        """Store a piece of the body. Raises ApiError."""
        self.active = True
        self._header_bytes = 0
        self._body_size += len(piece)
        if self._body_size > self._limits.body:
            raise self._too_large()
        if self.state == DISCARD:
            return
        pieces = self._pieces
        if self._decoder is None:
            pieces.append(piece)
        else:
            pieces += self._decoder.decode(piece)
        if len(pieces) - self._pieces_joined >= _PIECES:
            pieces[self._pieces_joined :] = [b"".join(pieces[self._pieces_joined :])]
            self._pieces_joined += 1

    def on_message_complete(self) -> None:
        """Pass on the request. Raises ApiError."""
        request = self._request
        if request is None:
            if self.state == DISCARD:
                self.state = IDLE
            return
        if self._parser.should_upgrade() and (request.header("content-length") or request.header("transfer-encoding")):
            return  # httptools regards the body as another protocol: `_ignore_upgrade` parses it
        self._request = None
        if self._pieces:
            request.content = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces = []
        if self._decoder is not None:
            self._decoder.finish()
            self._decoder = None
            request.set_decoded_body(request.body)
        self.state = IDLE if self._keep_alive else CLOSED
        self._receiver.request_received(request, self._keep_alive)

    def _parse(self, data: bytes | memoryview) -> None:
        """Feed httptools. Raises ApiError."""
        try:
            while True:
                try:
                    self._parser.feed_data(data)
                    return
                except HttpParserUpgrade as upgrade:
                    if self.state == CLOSED:
                        return
                    data = memoryview(data)[upgrade.args[0] :]
                    self._ignore_upgrade()
        except HttpParserError as error:
            if self.state == CLOSED:
                return  # data after the last request
            cause = error.__context__ if isinstance(error, HttpParserCallbackError) else None
            if cause is None:
                raise ApiError(400, "BadRequestException", "Invalid HTTP message.") from None
            if isinstance(cause, ApiError):
                raise cause from None
            _log.error("a request could not be received", exc_info=cause)
            raise ApiError(500, "InternalServerException", "The request could not be received.") from None

    def _ignore_upgrade(self) -> None:
        """Continue with HTTP/1.1 if a client requests another protocol, as Java's does with its first request.

        A server may ignore that header (RFC 9110, 7.8), but httptools regards all data after the headers, including the
        body, as the other protocol. Therefore a new parser gets the request without the upgrade header.
        """
        self._parser = HttpRequestParser(self)
        if self._request is not None:
            length = self._request.header("content-length")
            framing = f"content-length: {length}" if length else "transfer-encoding: chunked"
            self.state = REPLAY
            self._parser.feed_data(f"POST / HTTP/1.1\r\n{framing}\r\n\r\n".encode())

    def _count_header_bytes(self, size: int) -> None:
        """Count bytes of incomplete headers, of trailers and of chunk extensions. Raises ApiError."""
        self._header_bytes += size
        if self._header_bytes > self._limits.header:
            message = f"The headers are larger than {self._limits.header} bytes."
            raise ApiError(431, "BadRequestException", message)

    def _too_large(self) -> ApiError:
        return ApiError(413, "BadRequestException", f"The body is larger than {self._limits.body} bytes.")
