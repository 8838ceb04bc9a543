"""One client connection: parse requests, answer in order, enforce limits and timeouts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from torchmar.server.api_error import ApiError, not_allowed
from torchmar.server.http import content_coding
from torchmar.server.http.access import Access
from torchmar.server.http.request import Request
from torchmar.server.http.responses import CONTINUE

if TYPE_CHECKING:
    from torchmar.server.http.listener import Listener

_log = logging.getLogger("torchmar.server")

# What is awaited of the client: a request, more of its headers, the replayed headers of one that wanted another
# protocol, more of its body, or nothing any more.
_IDLE, _HEAD, _REPLAY, _BODY, _DEAF = range(5)
# A client that pipelines is not read from while more than so many of its requests wait.
_PIPELINED = 4
# Pieces of a body that are joined into one as they come: a million pieces of two bytes would take fifty times theirs.
_PIECES = 1024
# For the client to read why it was refused; what it still sends meanwhile is dropped. If the socket were closed at
# once with bytes unread, the system would reset it, and the answer would be lost.
_LINGER_SECONDS = 5.0


class Connection(asyncio.Protocol):
    """What asyncio and httptools call back; `Request` writes its answer through it, `Listener` sweeps over it."""

    __slots__ = (
        "_body_size",
        "_continue_owed",
        "_current",
        "_decoder",
        "_drainers",
        "_farewell",
        "_feed_size",
        "_fresh",
        "_limits",
        "_lingering",
        "_parser",
        "_pieces",
        "_pieces_joined",
        "_raw",
        "_reading_paused",
        "_request",
        "_serving",
        "_since",
        "_state",
        "_stray",
        "_taken",
        "_target",
        "_touched",
        "_transport",
        "_waiting",
        "_writing_paused",
        "_written",
        "client",
        "heads",
        "listener",
        "lost",
    )

    def __init__(self, listener: Listener) -> None:
        self.listener, self.heads, self._limits = listener, listener.heads, listener.limits
        self.client, self.lost = "", False
        # Requests: the one being received, those complete, the one being answered.
        self._parser = HttpRequestParser(self)
        self._state = _IDLE
        self._target, self._raw = b"", list[tuple[bytes, bytes]]()
        self._request: Request | None = None
        self._pieces, self._pieces_joined, self._body_size = list[bytes](), 0, 0
        self._decoder: content_coding.Decoder | None = None
        self._feed_size = self._stray = 0
        self._fresh = False
        self._waiting: deque[Request] = deque()
        self._current: Request | None = None
        self._serving = False
        self._continue_owed = False
        self._farewell = b""
        # Time and flow.
        self._touched, self._since, self._lingering = True, 0.0, False
        self._written = self._taken = 0
        self._reading_paused = self._writing_paused = False
        self._drainers: list[asyncio.Future[None]] = []

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the client, or tell it that there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.client = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        else:
            self.client = "unix"
        if not self.listener.admit(self):
            self._refuse(ApiError(503, "ServiceUnavailableException", "Too many connections."))

    def data_received(self, data: bytes) -> None:
        """Parse what has come, and answer what is complete."""
        if self._state == _DEAF:
            return
        self._feed_size = len(data)
        body_size = self._body_size
        try:
            self._parse(data)
            if self._state == _HEAD:
                if self._fresh:
                    self._fresh = False
                else:
                    self._count_stray(len(data))
            elif self._state == _BODY and self._body_size == body_size:
                self._count_stray(len(data))
        except ApiError as refusal:
            self._refuse(refusal)
        if self._waiting or self._farewell:
            self.serve()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell those who still work for the client."""
        self.lost, self._state = True, _DEAF
        self.listener.discard(self)
        self._wake()
        self._waiting.clear()
        request, self._current, self._request = self._current, None, None
        # The parser holds on to this object: without the circle both are freed at once.
        del self._parser
        if request is not None:
            try:
                request.leave()
            except Exception:
                _log.exception("%s %s: the client has gone, and telling so failed", request.method, request.path)

    def pause_writing(self) -> None:
        """Note that the client takes answers slower than they come."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """Go on: with those who drain, and with requests that wait."""
        self._writing_paused = False
        self._wake()
        self.serve()

    # What httptools calls. An exception in here kills the parser, and comes out of `_parse`.

    def on_url(self, piece: bytes) -> None:
        """Begin a request; its target comes in one piece or in several."""
        if self._state == _REPLAY:
            return
        if self._state == _HEAD:
            self._target += piece
        else:
            self._state = _HEAD
            self._target, self._raw = piece, []
            self._stray = 0
            self._fresh = self._touched = True
        if len(self._target) > self._limits.target:
            raise ApiError(414, "BadRequestException", f"The URL is longer than {self._limits.target} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        # Headers behind a body are trailers, which are ignored.
        if self._state == _HEAD:
            self._raw.append((name, value))

    def on_headers_complete(self) -> None:
        """Decide whether the body is wanted. Raises ApiError."""
        if self._state == _REPLAY:
            self._state = _BODY
            return
        parser, raw = self._parser, self._raw
        if self._stray + self._feed_size > self._limits.header:
            # Either the headers are too large, or they came together with other things: now it pays to count.
            self._stray = 0
            self._count_stray(sum(len(name) + len(value) + 4 for name, value in raw))
        # The first of several counts.
        fields = {name.lower(): value for name, value in reversed(raw)}
        version = parser.get_http_version()
        method = parser.get_method()
        length = fields.get(b"content-length")
        if length is not None and int(length) > self._limits.body:
            raise self._too_large()
        if b"transfer-encoding" in fields:
            # httptools refuses what is ambiguous; what is left has `chunked` as its last coding.
            if version == "1.0":
                raise ApiError(400, "BadRequestException", "HTTP/1.0 has no transfer-encoding.")
            if fields[b"transfer-encoding"].strip().lower() != b"chunked":
                raise ApiError(501, "BadRequestException", "No transfer-encoding is understood but chunked.")
        if version != "1.1" and version != "1.0":
            raise ApiError(505, "BadRequestException", f"HTTP/{version} is not understood.")
        if method == b"CONNECT":
            raise not_allowed("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
        self._decoder = None
        if b"content-encoding" in fields:
            coding = fields[b"content-encoding"].decode("latin-1")
            self._decoder = content_coding.decoder(coding, self._limits.body)
        if b"expect" in fields and version == "1.1":
            if fields[b"expect"].strip().lower() != b"100-continue":
                raise ApiError(417, "BadRequestException", "No expectation is met but 100-continue.")
            # Never into the middle of another answer.
            if self._current is None and not self._waiting:
                self.write(CONTINUE)
            else:
                self._continue_owed = True
        self._request = self.listener.request(
            self, method.decode(), self._target, raw, fields, version == "1.0", parser.should_keep_alive()
        )
        self._pieces, self._pieces_joined, self._body_size = [], 0, 0
        self._stray = 0
        self._state = _BODY

    def on_body(self, piece: bytes) -> None:
        """Keep a piece of the body. Raises ApiError."""
        self._touched = True
        self._stray = 0
        self._body_size += len(piece)
        if self._body_size > self._limits.body:
            raise self._too_large()
        pieces = self._pieces
        if self._decoder is None:
            pieces.append(piece)
        else:
            pieces += self._decoder.decode(piece)
        if len(pieces) - self._pieces_joined >= _PIECES:
            pieces[self._pieces_joined :] = [b"".join(pieces[self._pieces_joined :])]
            self._pieces_joined += 1

    def on_message_complete(self) -> None:
        """Put the request among those that wait."""
        request = self._request
        if request is None:
            return
        fields = request._fields
        if self._parser.should_upgrade() and (b"content-length" in fields or b"transfer-encoding" in fields):
            return  # httptools takes the body for another protocol: `_past_upgrade` has it read
        self._request = None
        if self._pieces:
            # Joining one piece copies nothing.
            request.body = b"".join(self._pieces)
            self._pieces = []
        if self._decoder is not None:
            self._decoder.finish()
            self._decoder = None
            request.decoded()
        self._continue_owed = False
        self._waiting.append(request)
        self._state = _IDLE if request._keep_alive else _DEAF

    # Receiving.

    def _parse(self, data: bytes | memoryview) -> None:
        """Feed the parser. Raises ApiError."""
        try:
            while True:
                try:
                    self._parser.feed_data(data)
                    return
                except HttpParserUpgrade as upgrade:
                    if self._state == _DEAF:
                        return
                    data = memoryview(data)[upgrade.args[0] :]
                    self._past_upgrade()
        except HttpParserError as error:
            if self._state == _DEAF:
                return  # more came behind the request that was to be the last
            cause = error.__context__ if isinstance(error, HttpParserCallbackError) else None
            if cause is None:
                raise ApiError(400, "BadRequestException", "Invalid HTTP message.") from None
            if isinstance(cause, ApiError):
                raise cause from None
            _log.error("a request could not be received", exc_info=cause)
            raise ApiError(500, "InternalServerException", "The request could not be received.") from None

    def _past_upgrade(self) -> None:
        """Go on with HTTP/1.1 where a client asked for another protocol, as Java's does with its first request.

        A server may ignore that wish (RFC 9110, 7.8), but httptools takes all that follows the headers, and so the
        body, for the other protocol. A new parser gets the body without the upgrade header.
        """
        self._parser = HttpRequestParser(self)
        if self._request is not None:
            length = self._request.header("content-length")
            framing = f"content-length: {length}" if length else "transfer-encoding: chunked"
            self._state = _REPLAY
            self._parser.feed_data(f"POST / HTTP/1.1\r\n{framing}\r\n\r\n".encode())

    def _count_stray(self, size: int) -> None:
        """Count bytes of headers that are not complete, of trailers and of what else is no body. Raises ApiError."""
        self._stray += size
        if self._stray > self._limits.header:
            message = f"The headers are larger than {self._limits.header} bytes."
            raise ApiError(431, "BadRequestException", message)

    def _too_large(self) -> ApiError:
        return ApiError(413, "BadRequestException", f"The body is larger than {self._limits.body} bytes.")

    def _refuse(self, refusal: ApiError) -> None:
        """Receive nothing more, and say why once the requests before are answered."""
        method, target = "", b""
        if self._state == _HEAD:
            method, target = self._parser.get_method().decode(), self._target
        elif self._request is not None:
            method, target = self._request.method, self._request.target
        if self.listener.access is not None:
            # The app never sees this request.
            self.listener.access(Access(time.time(), self.client, method, target, refusal.status, 0.0, ""))
        self._state, self._request, self._pieces = _DEAF, None, []
        self._farewell = self.heads.farewell(refusal, target)
        self.serve()

    # Answering.

    def serve(self) -> None:
        """Hand the requests that wait to the app, one after the other."""
        if self._serving or self.lost:
            return
        self._serving = True
        # A client that does not take its answers gets no more of them made.
        while self._waiting and self._current is None and not self._writing_paused:
            request = self._current = self._waiting.popleft()
            try:
                self.listener.app(request)
            except ApiError as refusal:
                request.refuse(refusal)
            except Exception as error:
                self.fault(request, error)
        self._serving = False
        if self._current is None and not self._waiting:
            if self._continue_owed:
                self._continue_owed = False
                self.write(CONTINUE)
            if self._farewell:
                self._part()
        waiting = len(self._waiting)
        if waiting > _PIPELINED:
            self._pause_reading()
        elif self._reading_paused:
            self._resume_reading()

    def fault(self, request: Request, error: Exception) -> None:
        """Log what went wrong with ``request``, and tell the client only that it did."""
        _log.error("%s %s failed", request.method, request.path, exc_info=error)
        request.refuse(ApiError(500, "InternalServerException", "The request failed; the server's log says why."))

    def answered(self, keep_alive: bool) -> None:
        """Go on to the next request, or close."""
        self._current = None
        self._touched = True
        # A stream may have promised more before the listener began to close.
        if not keep_alive or self.listener.closing:
            self._state, self._request = _DEAF, None
            self._waiting.clear()
            self._farewell = b""
            self._transport.close()
        elif not self._serving:
            self.serve()

    def write(self, data: bytes) -> None:
        """Send ``data``."""
        self._written += len(data)
        self._transport.write(data)

    def write_all(self, parts: list[bytes]) -> None:
        """Send ``parts``, without joining them where the loop can do so."""
        if type(self._transport).__module__.startswith("asyncio"):
            # Its own writelines does not say when too much is left to be sent, from Python 3.12 on.
            for part in parts:
                self.write(part)
            return
        self._written += sum(map(len, parts))
        self._transport.writelines(parts)

    async def drained(self) -> None:
        """Wait until little is left of what was written, or the client has gone."""
        if self._writing_paused and not self.lost:
            waiter = asyncio.get_running_loop().create_future()
            self._drainers.append(waiter)
            await waiter

    def _wake(self) -> None:
        drainers, self._drainers = self._drainers, []
        for waiter in drainers:
            if not waiter.done():
                waiter.set_result(None)

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self._transport.is_closing():
            self._reading_paused = False
            self._transport.resume_reading()

    def _part(self) -> None:
        """Say the last words, and listen until they are read."""
        farewell, self._farewell = self._farewell, b""
        self._lingering = self._touched = True
        if self._transport.is_closing():
            return
        self.write(farewell)
        if self.listener.closing:
            self._transport.close()
        elif self._transport.can_write_eof():
            self._transport.write_eof()
        self._resume_reading()

    # Time, and the end.

    def check(self, now: float) -> None:
        """Part with a client that is too slow; called every so often with the loop's time.

        Events since the last call count as now: no client is cut off early, nor later than two calls after its limit.
        """
        unsent = self._transport.get_write_buffer_size()
        if unsent:
            taken = self._written - unsent
            if self._touched or taken != self._taken:
                self._touched, self._taken, self._since = False, taken, now
            elif now - self._since > self._limits.body_seconds:
                self.cut()
        elif self._touched or self._current is not None:
            self._touched, self._since = False, now
        elif self._lingering:
            if now - self._since > _LINGER_SECONDS:
                self._transport.close()
        elif self._state == _IDLE:
            if now - self._since > self._limits.idle_seconds:
                self._transport.close()
        elif self._state == _HEAD:
            if now - self._since > self._limits.header_seconds:
                self._refuse(ApiError(408, "RequestTimeoutException", "The headers did not arrive in time."))
        elif self._state == _BODY and now - self._since > self._limits.body_seconds:
            self._refuse(ApiError(408, "RequestTimeoutException", "The body stopped arriving."))

    def retire(self) -> None:
        """Close, unless a request is being received or answered."""
        if self._lingering or (self._state == _IDLE and self._current is None and not self._waiting):
            self._transport.close()

    def cut(self) -> None:
        """Close at once, whatever is under way."""
        self._transport.abort()
