"""A collector of traces: an HTTP server that decodes OTLP."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.support.waiting import until


class CollectedSpan(NamedTuple):
    """A span as it was received; ids are hexadecimal, times are in nanoseconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: int
    end: int
    attributes: dict[str, Any]
    status: int
    message: str
    links: list[tuple[str, str]]
    trace_state: str
    resource: dict[str, Any]

    def inside(self, other: CollectedSpan) -> bool:
        return other.start <= self.start <= self.end <= other.end


class Collector:
    """A receiver of spans at its own port; a context manager.

    Attributes:
        url: address for the configuration of a server.
        headers: headers of each received request.
        status: status of the responses.
    """

    def __init__(self) -> None:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                if self.path == "/v1/traces" and collector.status == 200:
                    encoded = self.headers.get("content-encoding") == "gzip"
                    collector._receive(gzip.decompress(body) if encoded else body)
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.headers: list[dict[str, str]] = []
        self.status = 200
        self._spans: list[CollectedSpan] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def spans(self, trace_id: str = "") -> list[CollectedSpan]:
        """Return the spans of a trace, or all, in the order of their beginnings."""
        return sorted(
            (span for span in list(self._spans) if trace_id in ("", span.trace_id)), key=lambda span: span.start
        )

    def trace(self, trace_id: str, count: int) -> dict[str, CollectedSpan]:
        """Return the spans of a trace by their names, if there are ``count``; the server's span has the name ``""``."""
        until(lambda: len(self.spans(trace_id)) >= count)
        spans = self.spans(trace_id)
        assert len(spans) == count, [span.name for span in spans]
        return {"" if span.kind == 2 else span.name: span for span in spans}

    def _receive(self, body: bytes) -> None:
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {pair.key: _value(pair.value) for pair in of_resource.resource.attributes}
            for scope in of_resource.scope_spans:
                for span in scope.spans:
                    self._spans.append(
                        CollectedSpan(
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.kind,
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            {pair.key: _value(pair.value) for pair in span.attributes},
                            span.status.code,
                            span.status.message,
                            [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                            span.trace_state,
                            resource,
                        )
                    )


def _value(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")
