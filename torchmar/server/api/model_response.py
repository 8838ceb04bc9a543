"""The HTTP response to a request to a model: whole, in parts or as events; compressed if the client accepts it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from torchmar.server.api import event_stream
from torchmar.server.api_error import ApiError
from torchmar.server.http import Request, compression
from torchmar.server.http.responses import BODILESS
from torchmar.server.kserve_errors import is_kserve, with_error
from torchmar.server.models.registry import Version
from torchmar.server.request_ids import HEADER
from torchmar.server.telemetry import logs
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.workers.jobs import Reply

_JSON = "application/json"
_LARGE = 1 << 16  # bytes above which a body is compressed in a thread


class ModelResponse:
    """The response to one request.

    Args:
        request: the request.
        request_id: value of ``x-request-id`` in the response.
        version: the version of the model.
        metrics: counts the request.
        max_size: largest size of a reply in bytes.

    Attributes:
        convert: converts the body of a successful reply, or raises ValueError; None: the body is sent unchanged.
        encoding: content coding of the body, ``gzip`` or ``deflate``; empty: none.
        events: whether the parts of a streamed reply are sent as events.
        only_events: whether even a reply that is not streamed is sent as an event.
    """

    __slots__ = (
        "_as_events",
        "_failed",
        "_id",
        "_max_size",
        "_metrics",
        "_request",
        "_since",
        "_started",
        "_version",
        "convert",
        "encoding",
        "events",
        "only_events",
    )

    def __init__(self, request: Request, request_id: str, version: Version, metrics: Metrics, max_size: int) -> None:
        self._request, self._id, self._version, self._metrics = request, request_id, version, metrics
        self._max_size = max_size
        self._started = self._failed = self._as_events = False
        self._since = time.monotonic()
        self.encoding = ""
        self.events = self.only_events = False
        self.convert: Callable[[bytes], bytes] | None = None

    def on_reply(self, reply: Reply) -> None:
        """Send the reply, or the next part of a streamed one."""
        if len(reply.body) > self._max_size:
            reply = self._too_large(reply)
        request = self._request
        if self.convert and reply.status < 300:
            reply = self._converted(reply)
        if reply.status >= 400 and not reply.more and not self._started and is_kserve(request.target):
            reply = reply._replace(body=with_error(reply.body), content_type=_JSON)
        if not reply.more:
            # This breaks the reference cycle of request and job, so that both are freed at once.
            request.on_disconnect = None
            seconds = time.monotonic() - self._since
            self._metrics.request(self._version.name, self._version.version, reply.status, seconds)
        if reply.more or self._started or self._failed or (self.only_events and self._is_event(reply)):
            self._send_part(reply)
        elif self.encoding and "content-encoding" not in map(str.lower, reply.headers):
            self._compress(reply)
        elif reply.headers:
            content_type, headers = self._head(reply)
            request.respond(reply.status, reply.body, content_type, headers)
        else:
            request.respond(reply.status, reply.body, reply.content_type, ((HEADER, self._id),))

    def _converted(self, reply: Reply) -> Reply:
        try:
            if reply.more or self._started:
                raise ValueError("the model's answer is streamed; call predict for it")
            assert self.convert is not None
            return reply._replace(body=self.convert(reply.body), content_type=_JSON)
        except (ValueError, RecursionError) as error:
            return Reply.of(ApiError(400, "BadRequestException", str(error)), more=reply.more)

    def _compress(self, reply: Reply) -> None:
        """Send a reply in the client's content coding; a large one is encoded in a thread, to block no others."""
        if len(reply.body) < _LARGE:
            self._send_encoded(reply, compression.encode(reply.body, self.encoding))
            return
        loop = asyncio.get_running_loop()
        encoding = loop.run_in_executor(None, compression.encode, reply.body, self.encoding)
        encoding.add_done_callback(lambda future: self._send_encoded(reply, future.result()))

    def _send_encoded(self, reply: Reply, body: bytes) -> None:
        content_type, headers = self._head(reply)
        headers += [("content-encoding", self.encoding), ("vary", "accept-encoding")]
        self._request.respond(reply.status, body, content_type, headers)

    def _send_part(self, reply: Reply) -> None:
        request = self._request
        if self._failed:
            return
        if reply.message:
            self._failed = True
            if self._as_events:
                self._send_error(reply)
            elif self._started:
                # The status of success was sent already: the abort shows the client that parts are missing.
                request.abort()
            else:
                request.respond(reply.status, reply.body, reply.content_type, ((HEADER, self._id),))
            return
        if not self._started:
            self._started = True
            content_type, headers = self._head(reply)
            self._as_events = self.events and reply.status < 400 and not self._has_own_format(reply)
            if self._as_events:
                content_type, headers = event_stream.CONTENT_TYPE, [*headers, *event_stream.HEADERS]
            request.start(reply.status, content_type, headers)
        if self._as_events:
            if reply.status >= 400:
                self._failed = True
                self._send_error(reply)
                return
            if not self._send_event(reply):
                return
        else:
            request.send(reply.body)
        if not reply.more:
            request.end()

    def _is_event(self, reply: Reply) -> bool:
        """Return whether a whole reply is sent as an event: it can be one, and the client accepts nothing else."""
        if reply.status >= 300 or reply.status in BODILESS:
            return False
        return not self._has_own_format(reply) and _is_text(reply.body)

    def _has_own_format(self, reply: Reply) -> bool:
        """Return whether a handler formats events itself, or compresses the parts."""
        content_type, headers = self._head(reply)
        is_event_stream = content_type.partition(";")[0].strip().lower() == event_stream.CONTENT_TYPE
        return is_event_stream or any(name.lower() == "content-encoding" for name, _ in headers)

    def _send_event(self, reply: Reply) -> bool:
        """Send a part as an event; return False if it cannot be one, so that the stream has ended with an error."""
        try:
            text = reply.body.decode()
        except UnicodeDecodeError:
            self._failed = True
            message = "A part of the answer is not UTF-8 text, which events cannot hold. Accept other types to get it."
            self._send_error(Reply.of(ApiError(500, "InternalServerException", message)))
            return False
        if text:
            self._request.send(event_stream.event(text))
        return True

    def _send_error(self, reply: Reply) -> None:
        """Send an error as the last event, because the status of the response has been sent before."""
        request = self._request
        request.send(event_stream.event(reply.body.decode("utf-8", "replace").rstrip(), "error"))
        request.end()

    def _head(self, reply: Reply) -> tuple[str, list[tuple[str, str]]]:
        """Return the content type and the headers, except headers that a handler cannot set."""
        content_type, headers = reply.content_type, [(HEADER, self._id)]
        for name, value in reply.headers.items():
            lower = name.lower()
            if lower == "content-type":
                # The body of an error in KServe's protocols is the server's, and so is its type.
                content_type = content_type or value
            elif lower != HEADER:
                headers.append((name, value))
        return content_type, headers

    def _too_large(self, reply: Reply) -> Reply:
        name, version, size = self._version.name, self._version.version, len(reply.body)
        message = f"The answer has {size} bytes, more than max_response_size={self._max_size} allows."
        extra = {"model": name, "version": version, "request_id": self._id}
        logs.SERVER.warning("%s %s, request %s: %s", name, version, self._id, message, extra=extra)
        return Reply.of(ApiError(500, "InternalServerException", message), more=reply.more)


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
