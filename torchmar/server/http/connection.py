"""One client connection: it answers requests in order, stays open or closes, and enforces timeouts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import cast

from torchmar.server.api_error import ApiError
from torchmar.server.buffer_receiver import LARGE, BufferReceiver
from torchmar.server.http.access import Access, access
from torchmar.server.http.context import Context
from torchmar.server.http.request import Request
from torchmar.server.http.request_parser import BODY, CLOSED, DISCARD, HEAD, IDLE, RequestParser
from torchmar.server.http.responses import CLOSE, CONTINUE, KEEP_ALIVE

_log = logging.getLogger("torchmar.server")

# No more data is read from a pipelining client while more than this number of its requests wait.
_PIPELINED = 4
# Larger bodies are written separately, not copied behind their headers first.
_LARGE = 65_536
# Time for the client to read the final error; its further data is dropped. If the socket were closed at once with
# unread bytes, the system would reset the connection, and the response would be lost.
_LINGER_SECONDS = 5.0


class Connection(asyncio.Protocol):
    """A connection, called by asyncio; a `RequestReceiver` for its parser, a `ResponseWriter` for its requests.

    Args:
        context: shared state of the listener.
        admit: called when the connection is made; False: there are too many connections.
        discard: called when the connection is closed.

    Attributes:
        client: address of the peer.
        lost: whether the connection is closed.
    """

    __slots__ = (
        "_active",
        "_admit",
        "_context",
        "_continue_pending",
        "_current",
        "_discard",
        "_drain_waiters",
        "_final_response",
        "_last_request",
        "_lingering",
        "_parser",
        "_quiet_since",
        "_reading_paused",
        "_sent",
        "_serving",
        "_transport",
        "_waiting",
        "_writing_paused",
        "_written",
        "client",
        "lost",
    )

    def __init__(
        self, context: Context, admit: Callable[[Connection], bool], discard: Callable[[Connection], None]
    ) -> None:
        self._context, self._admit, self._discard = context, admit, discard
        self.client, self.lost = "", False
        # Requests: the parser has the one being received; here are those that wait, the one being answered, and the
        # one after whose response the connection is closed.
        self._waiting: deque[Request] = deque()
        self._current: Request | None = None
        self._last_request: Request | None = None
        self._serving = False
        self._continue_pending = False
        self._final_response = b""
        # Time and flow.
        self._active, self._quiet_since, self._lingering = True, 0.0, False
        self._written = self._sent = 0
        self._reading_paused = self._writing_paused = False
        self._drain_waiters: list[asyncio.Future[None]] = []

    # Callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection, or respond that there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.client = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        else:
            self.client = "unix"
        # For each request, a partial costs less than a method.
        new_request = partial(Request, self._context, self, self._complete, self.client)
        self._parser = RequestParser(self._context.limits, self, new_request)
        if not self._admit(self):
            self._reject(ApiError(503, "ServiceUnavailableException", "Too many connections."))

    def data_received(self, data: bytes) -> None:
        """Parse the received data, and answer complete requests."""
        parser = self._parser
        if parser.state >= DISCARD and (parser.state == CLOSED or not (data := parser.discard(data))):
            return
        try:
            parser.feed(data)
        except ApiError as error:
            self._reject(error)
        if parser.state == BODY and parser.missing >= LARGE:
            BufferReceiver(self._transport, self, [parser.receive_body()], self._on_body_data, self._on_body)
        if self._waiting or self._final_response:
            self._serve()

    def _on_body_data(self) -> None:
        self._parser.active = True

    def _on_body(self) -> None:
        self._parser.body_received()
        self._serve()

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel the work for the client."""
        self.lost = True
        self._discard(self)
        self._parser.close()
        self._wake_drain_waiters()
        self._waiting.clear()
        request, self._current, self._last_request = self._current, None, None
        if request is None:
            return
        try:
            request.disconnect()
        except Exception:
            _log.exception("%s %s: on_disconnect failed", request.method, request.path)
        if request.observer is not None:
            request.observer.on_end(request)
        if self._context.on_access is not None:
            self._context.on_access(access(request))

    def pause_writing(self) -> None:
        """Answer no further requests, because the client receives responses more slowly than they are made."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """Answer further requests."""
        self._writing_paused = False
        self._wake_drain_waiters()
        self._serve()

    # Callbacks of the parser.

    def head_received(self, request: Request, keep_alive: bool) -> bool:
        """Let the application respond before the body arrives, unless earlier requests wait."""
        on_head = self._context.on_head
        if on_head is None or self._current is not None or self._waiting or self._writing_paused:
            return False
        last, self._current = self._last_request, request
        if not keep_alive:
            self._last_request = request
        try:
            on_head(request)
        except Exception as error:
            request.fail(error)
        if request.complete:
            return True
        self._current, self._last_request = None, last
        return False

    def expect_continue(self) -> None:
        """Send 100 (Continue), but not within another response."""
        if self._current is None and not self._waiting:
            self.write(CONTINUE)
        else:
            self._continue_pending = True

    def request_received(self, request: Request, keep_alive: bool) -> None:
        """Queue a request."""
        self._continue_pending = False
        self._waiting.append(request)
        if not keep_alive:
            self._last_request = request

    def _reject(self, error: ApiError) -> None:
        """Receive no more data, and send an error after the responses to earlier requests."""
        if self._parser.state == DISCARD:  # the request already has its response
            self._parser.stop()
            self._linger()
            return
        method, target = self._parser.incomplete()
        if self._context.on_access is not None:
            # The app does not get this request.
            self._context.on_access(
                Access(
                    time=time.time(),
                    client=self.client,
                    method=method,
                    target=target,
                    status=error.status,
                    seconds=0.0,
                    request_id="",
                )
            )
        self._parser.stop()
        self._final_response = self._context.heads.final_response(error, target)
        self._serve()

    # Responses.

    def _serve(self) -> None:
        """Pass the waiting requests to the app, one after the other."""
        if self._serving or self.lost:
            return
        self._serving = True
        # No more responses are made for a client that does not receive them.
        while self._waiting and self._current is None and not self._writing_paused:
            request = self._current = self._waiting.popleft()
            try:
                self._context.app(request)
            except ApiError as error:
                request.respond_error(error)
            except Exception as error:
                request.fail(error)
        self._serving = False
        if self._current is None and not self._waiting:
            if self._continue_pending:
                self._continue_pending = False
                self.write(CONTINUE)
            if self._final_response:
                self._send_final_response()
        waiting = len(self._waiting)
        if waiting > _PIPELINED:
            self._pause_reading()
        elif self._reading_paused:
            self._resume_reading()

    def _complete(self, request: Request) -> None:
        """Close the connection after its last response, or serve the next request."""
        if request.observer is not None:
            request.observer.on_end(request)
        if self._context.on_access is not None:
            self._context.on_access(access(request))
        # This may differ from the head of the response: the listener may have begun to close since then.
        keep_alive = self._keeps_alive()
        self._current = None
        self._active = True
        if not keep_alive:
            unread = self._parser.state == BODY  # the response was sent before the body had arrived
            self._parser.stop()
            self._waiting.clear()
            self._final_response = b""
            if unread:
                self._linger()
            else:
                self._transport.close()
        elif self._waiting or self._final_response or self._continue_pending or self._reading_paused:
            self._serve()

    def write_response(self, head: bytes, length: int, body: bytes) -> None:
        """Send the whole response to the current request."""
        connection = KEEP_ALIVE if self._keeps_alive() else CLOSE
        if len(body) < _LARGE:
            self.write(b"%b%bcontent-length: %d\r\n\r\n%b" % (head, connection, length, body))
        else:
            self.write_parts([b"%b%bcontent-length: %d\r\n\r\n" % (head, connection, length), body])

    def write_head(self, head: bytes, *, close: bool = False) -> None:
        """Send the head of the response to the current request."""
        if close:
            self._last_request = self._current
        self.write(b"%b%b\r\n" % (head, KEEP_ALIVE if self._keeps_alive() else CLOSE))

    def _keeps_alive(self) -> bool:
        """Whether the connection stays open after the response to the current request."""
        return self._current is not self._last_request and not self._context.closing

    def write(self, data: bytes) -> None:
        """Send ``data``."""
        self._written += len(data)
        self._transport.write(data)

    def write_parts(self, parts: list[bytes]) -> None:
        """Send ``parts`` without joining them, if the loop supports it."""
        if type(self._transport).__module__.startswith("asyncio"):
            # From Python 3.12 on, its own writelines does not call pause_writing.
            for part in parts:
                self.write(part)
            return
        self._written += sum(map(len, parts))
        self._transport.writelines(parts)

    async def drain(self) -> None:
        """Wait until most of the written data is sent, or the client has disconnected."""
        if self._writing_paused and not self.lost:
            waiter = asyncio.get_running_loop().create_future()
            self._drain_waiters.append(waiter)
            await waiter

    def _wake_drain_waiters(self) -> None:
        waiters, self._drain_waiters = self._drain_waiters, []
        for waiter in waiters:
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

    def _send_final_response(self) -> None:
        """Send the final error, and end the connection."""
        response, self._final_response = self._final_response, b""
        if not self._transport.is_closing():
            self.write(response)
        if self._context.closing:
            self._transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Half-close the connection, and discard input until the client has read the last response."""
        self._lingering = self._active = True
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._resume_reading()

    # Timeouts and end.

    def check_timeouts(self, now: float) -> None:
        """Close the connection of a client that is too slow; called regularly with the loop's time.

        Events since the previous call count as events now: a timeout is never too early, and at most two calls too
            late.
        """
        parser, limits = self._parser, self._context.limits
        active = self._active or parser.active
        self._active = parser.active = False
        unsent = self._transport.get_write_buffer_size()
        if unsent:
            sent = self._written - unsent
            if active or sent != self._sent:
                self._sent, self._quiet_since = sent, now
            elif now - self._quiet_since > limits.body_seconds:
                self.abort()
        elif active or self._current is not None:
            self._quiet_since = now
        elif self._lingering:
            if now - self._quiet_since > _LINGER_SECONDS:
                self._transport.close()
        elif parser.state == IDLE:
            if now - self._quiet_since > limits.idle_seconds:
                self._transport.close()
        elif parser.state == HEAD:
            if now - self._quiet_since > limits.header_seconds:
                self._reject(ApiError(408, "RequestTimeoutException", "The headers did not arrive in time."))
        elif parser.state in (BODY, DISCARD) and now - self._quiet_since > limits.body_seconds:
            self._reject(ApiError(408, "RequestTimeoutException", "The body did not arrive in time."))

    def shutdown(self) -> None:
        """Close the connection, unless a request is being received or answered."""
        if self._current is not None or self._waiting:
            return
        if self._parser.state == DISCARD:
            self._parser.stop()
            self._linger()
        elif self._lingering or self._parser.state == IDLE:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once, even during a request."""
        self._transport.abort()
