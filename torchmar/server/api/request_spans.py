"""The span of an HTTP request in the server, by OpenTelemetry's semantic conventions.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

from __future__ import annotations

from torchmar.server.http import Request
from torchmar.server.telemetry.spans import RequestSpan
from torchmar.server.telemetry.tracing import Tracer
from torchmar.worker.process.trace_context import TRACEPARENT, TRACESTATE

_CANCELLED = "client_disconnected"
_ABORTED = "the response was aborted"


class HttpSpans:
    """Starts and ends the spans of one API.

    Args:
        tracer: decides which requests are sampled.
        scheme: ``http`` or ``https``.
    """

    def __init__(self, tracer: Tracer, scheme: str) -> None:
        self._tracer, self._scheme = tracer, scheme

    def start(self, request: Request, request_id: str, route: str = "") -> RequestSpan | None:
        """Start the span of a request, which ends with its response; None if it is not sampled.

        The handler then gets a ``traceparent`` with this span as the parent.

        Args:
            request: the request.
            request_id: its id in the logs.
            route: template of its path; empty: there is none.
        """
        if isinstance(request.observer, _Ending):  # the request has waited until its model was loaded, or is rejected
            return request.observer.span
        client = request.client.rpartition(":")[0].strip("[]")
        attributes = {
            "http.request.method": request.method,
            "url.path": request.path,
            "url.scheme": self._scheme,
            "torchmar.request.id": request_id,
            **({"http.route": route} if route else {}),
            **({"client.address": client} if client else {}),
        }
        if agent := request.header("user-agent"):
            attributes["user_agent.original"] = agent
        name = f"{request.method} {route}" if route else request.method
        parents, states = request.header_values(TRACEPARENT), request.header_values(TRACESTATE)
        span = self._tracer.start(name, parents, states, request.received, attributes)
        request.observer = _Ending(span)
        if span is not None:
            request.set_header(TRACEPARENT, span.traceparent)
        return span


class _Ending:
    """Ends the span of a request with its response; the span is None if the request is not sampled."""

    __slots__ = ("span",)

    def __init__(self, span: RequestSpan | None) -> None:
        self.span = span

    def on_end(self, request: Request) -> None:
        """Implement `RequestObserver`."""
        if self.span is None:
            return
        attributes, error = self.span.attributes, None
        if request.status:
            attributes["http.response.status_code"] = request.status
        if request.disconnected and request.complete:
            attributes["error.type"], error = "aborted", _ABORTED
        elif request.disconnected:
            attributes["error.type"] = _CANCELLED
        elif request.status >= 500:
            attributes["error.type"], error = str(request.status), ""
        self.span.end(error)
