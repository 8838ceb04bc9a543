"""The choice of requests whose spans are sent, and their transmission over OTLP; ``pip install 'torchmar[tracing]'``.

The variables ``OTEL_...`` are OpenTelemetry's own, read by its SDK:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torchmar
from torchmar.server.telemetry import logs
from torchmar.server.telemetry.logs import BackgroundWriter
from torchmar.server.telemetry.spans import RequestSpan, Span, new_id
from torchmar.worker.process import trace_context

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.sampling import Sampler

DROPPED = "torchmar_dropped_spans_total"

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_PATH = "/v1/traces"
_CAPACITY = 20_000  # spans that wait to be sent, about ten megabytes
_AT_ONCE = 256  # spans in one call; the event loop waits while Python encodes them
_WRONG_VARIABLE = "no spans are sent: a variable OTEL_... is wrong: %s"
_CLOCK_STEP_NS = 1_000_000
_WARNING_INTERVAL_S = 60.0
_SECONDS_AT_THE_END = 5.0


def open_tracer(endpoint: str, ratio: float | None, environment: Mapping[str, str]) -> Tracer | None:
    """Return a tracer for the configured collector; None if there is none, or if spans cannot be sent.

    Args:
        endpoint: URL of the collector, without the path; empty: that of the environment.
        ratio: share of the requests to trace, among those without a trace of their client, from 0 to 1; None: that of
            the environment, whose default is all of them.
        environment: environment with OpenTelemetry's variables.
    """
    configured_url = next(filter(None, map(environment.get, _ENDPOINTS)), "")
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter_name = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if not (endpoint or configured_url) or disabled or exporter_name == "none":
        return None
    url = f"{endpoint.rstrip('/')}{_PATH}" if endpoint else configured_url
    if not (address := _address(url)):
        logs.SERVER.warning("no spans are sent: OTEL_EXPORTER_OTLP_ENDPOINT must be like http://127.0.0.1:4318")
        return None
    variable = next(filter(environment.get, _PROTOCOLS), "")
    if variable and not endpoint and (protocol := environment[variable].strip()) != _PROTOCOL:
        logs.SERVER.warning("no spans are sent: %s=%s, and the server sends %s", variable, protocol, _PROTOCOL)
        return None
    import requests

    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider, sampling
    except ImportError:
        logs.SERVER.warning("no spans are sent: they need pip install 'torchmar[tracing]'")
        return None
    except ValueError as error:  # because of a variable that is read when the module is imported
        logs.SERVER.warning(_WRONG_VARIABLE, error)
        return None

    class HashedResource(Resource):
        """The resource of all spans, with a cached hash: the encoder otherwise spends most of its time on it."""

        __hash__ = object.__hash__

    class Session(requests.Session):
        """A session that keeps the reason of a failure, which the exporter does not return."""

        def request(self, *arguments: Any, **options: Any) -> requests.Response:
            """Send a request."""
            try:
                response = super().request(*arguments, **options)
            except requests.RequestException as error:
                library.reason = _reason(error)
                raise
            library.reason = f"{response.status_code} {response.reason}"
            return response

    library = _LibraryLog()
    try:
        exporter = OTLPSpanExporter(endpoint=url if endpoint else None, session=Session())
        root = None if ratio is None else sampling.ParentBasedTraceIdRatio(ratio)
        sampler = TracerProvider(root, shutdown_on_exit=False).sampler
    except (ValueError, TypeError, OSError) as error:  # because of OpenTelemetry's variables
        library.close()
        logs.SERVER.warning(_WRONG_VARIABLE, error)
        return None
    detected = Resource.create()
    defaults = {SERVICE_NAME: "torchmar", SERVICE_VERSION: torchmar.__version__}
    if not str(detected.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        del defaults[SERVICE_NAME]
    if SERVICE_VERSION in detected.attributes:
        del defaults[SERVICE_VERSION]
    resource = HashedResource({**detected.attributes, **defaults}, detected.schema_url)
    logs.SERVER.info("spans of requests are sent to %s", address)
    return Tracer(sampler, _Sender(exporter, resource, address, library))


def _address(url: str) -> str:
    """Return host and port of a collector's URL for the log; empty if the URL is malformed."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and parts.hostname
        return f"{parts.hostname}:{parts.port or parts.scheme}" if is_url else ""
    except ValueError:  # a malformed port, or half of an IPv6 address
        return ""


class Tracer:
    """Starts the spans of sampled requests; `open_tracer` creates it.

    Args:
        sampler: decides which requests are sampled.
        sender: sends their spans.
    """

    def __init__(self, sampler: Sampler, sender: _Sender) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.sdk.trace.sampling import Decision

        self._trace, self._no_context, self._sampled = trace, Context(), Decision.RECORD_AND_SAMPLE
        self._sampler, self._sender = sampler, sender

    def start(
        self, name: str, traceparent: Sequence[str], tracestate: Sequence[str], start: float, attributes: dict[str, Any]
    ) -> RequestSpan | None:
        """Start the span of a request; None if the request is not sampled.

        Args:
            name: name of the span.
            traceparent: all headers of this name; several, or a malformed one, are ignored.
            tracestate: all headers of this name.
            start: start time of the request, by `time.monotonic`.
            attributes: attributes of the span.
        """
        trace = self._trace
        parent = trace_context.parse(traceparent[0]) if len(traceparent) == 1 else None
        context, state = self._no_context, None
        if parent is None:
            trace_id = new_id(128)
        else:
            trace_id = int(parent.trace_id, 16)
            state = trace.TraceState.from_header(list(tracestate)) if tracestate else None
            flags = trace.TraceFlags(parent.flags)
            remote = trace.SpanContext(trace_id, int(parent.span_id, 16), True, flags, state)
            context = trace.set_span_in_context(trace.NonRecordingSpan(remote), context)
        sampled = self._sampler.should_sample(context, trace_id, name, trace.SpanKind.SERVER, attributes)
        if sampled.decision is not self._sampled:
            return None
        attributes.update(sampled.attributes or {})
        return RequestSpan(self._sender.put, name, trace_id, parent, sampled.trace_state or state, start, attributes)

    @property
    def dropped(self) -> int:
        """The number of spans that were not sent, because the collector was too slow or did not accept them."""
        return self._sender.dropped

    def close(self, timeout_s: float) -> None:
        """Send the waiting spans; give up after ``timeout_s``, or at once if the collector does not accept them."""
        self._sender.close(min(timeout_s, _SECONDS_AT_THE_END))


class _Sender:
    """Sends spans in a separate thread; a collector that does not accept them is logged once.

    Args:
        exporter: sends the spans.
        resource: resource of the spans.
        address: address of the collector, for the log.
        library: log handler that has the reason of a failure.
    """

    def __init__(self, exporter: SpanExporter, resource: Resource, address: str, library: _LibraryLog) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._trace, self._readable = trace, ReadableSpan
        self._scope = InstrumentationScope("torchmar", torchmar.__version__)
        self._exporter, self._resource, self._address, self._library = exporter, resource, address, library
        self._offset_ns = _offset_ns()
        self._failing, self._sending = False, 0
        self._reported, self._reported_at = 0, -_WARNING_INTERVAL_S
        self._writer = BackgroundWriter[Span]("spans", self._write, _CAPACITY, at_once=_AT_ONCE, warn=False)
        self.put = self._writer.put

    @property
    def dropped(self) -> int:
        return self._writer.dropped

    def close(self, timeout_s: float) -> None:
        if self._failing:
            self._exporter.shutdown()  # no further attempts
        self._writer.close(timeout_s)
        if not self._failing:
            self._exporter.shutdown()
        if lost := self._writer.dropped + self._writer.waiting + self._sending:
            logs.SERVER.warning("number of spans that were not sent to %s since the start: %d", self._address, lost)
        self._library.close()

    def _write(self, spans: Sequence[Span]) -> None:
        """Send spans. Raises OSError if the collector does not accept them."""
        if abs((offset_ns := _offset_ns()) - self._offset_ns) > _CLOCK_STEP_NS:
            self._offset_ns = offset_ns
        self._sending = len(spans)
        try:
            succeeded = self._exporter.export([self._complete(span) for span in spans]).name == "SUCCESS"
            reason = self._library.reason
        except Exception as error:  # a header or a text cannot be encoded
            succeeded, reason = False, type(error).__name__
        self._sending = 0
        if not succeeded:
            if not self._failing:
                self._failing = True
                message = "spans are dropped: %s does not take them (%s); %s counts them"
                logs.SERVER.warning(message, self._address, reason, DROPPED)
            raise OSError
        if self._failing:
            self._failing = False
            logs.SERVER.info("%s takes spans again; %d were dropped", self._address, self._writer.dropped)
            self._reported = self._writer.rejected
        rejected, now = self._writer.rejected, time.monotonic()
        if rejected > self._reported and now - self._reported_at >= _WARNING_INTERVAL_S:
            logs.SERVER.warning("%s is too slow: %d spans are dropped", self._address, rejected - self._reported)
            self._reported, self._reported_at = rejected, now

    def _complete(self, span: Span) -> ReadableSpan:
        trace = self._trace
        flags, offset_ns = trace.TraceFlags(trace_context.SAMPLED), self._offset_ns
        parent = None
        if span.parent_id:
            parent = trace.SpanContext(span.trace_id, span.parent_id, span.remote_parent, flags)
        error = span.error
        return self._readable(
            span.name,
            trace.SpanContext(span.trace_id, span.span_id, False, flags, span.trace_state),
            parent,
            self._resource,
            span.attributes,
            links=[trace.Link(trace.SpanContext(*link, False, flags)) for link in span.links],
            kind=trace.SpanKind.SERVER if span.server else trace.SpanKind.INTERNAL,
            status=trace.Status() if error is None else trace.Status(trace.StatusCode.ERROR, _text(error) or None),
            start_time=round(span.start * 1e9) + offset_ns,
            end_time=round(span.end * 1e9) + offset_ns,
            instrumentation_scope=self._scope,
        )


class _LibraryLog(logging.Handler):
    """The log of OpenTelemetry: only warnings of its configuration are logged; others may contain headers, which are
    secret.

    Attributes:
        reason: the collector's last answer, or the reason why there is none.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reason = ""
        self._logger = logging.getLogger("opentelemetry")
        self._logger.handlers, self._logger.propagate = [self], False

    def close(self) -> None:
        self._logger.removeHandler(self)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Log a warning of the configuration."""
        if record.name == "opentelemetry.util.re":
            logs.SERVER.warning("OTEL_EXPORTER_OTLP_HEADERS: a header is malformed, and is not sent")
        elif record.name.endswith(("._common", ".sampling")):
            logs.SERVER.warning("OpenTelemetry: %s", record.getMessage())


def _text(message: str) -> str:
    """Return a handler's message as text that can be encoded, because it may contain lone surrogates."""
    return message.encode("utf-8", "replace").decode()


def _reason(error: BaseException) -> str:
    """Return the system's reason of an error, or its type, because its message may contain the URL."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror and cause.errno:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def _offset_ns() -> int:
    """Return the difference between seconds since 1970 and `time.monotonic`, in nanoseconds."""
    return time.time_ns() - time.monotonic_ns()
