"""The server's spans of calls to models over gRPC, by OpenTelemetry's semantic conventions.

https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio

from torchmar.server.grpc.calls import Code, Context
from torchmar.server.telemetry.spans import RequestSpan
from torchmar.server.telemetry.tracing import Tracer
from torchmar.worker.process.trace_context import TRACEPARENT, TRACESTATE

#: The span of the call in the current task.
current: ContextVar[RequestSpan | None] = ContextVar("current", default=None)

# Calls to models; other calls, such as probes, have no span.
_METHODS = (
    *("/Predictions", "/StreamPredictions", "/StreamPredictions2", "/ModelInfer", "/ModelStreamInfer"),
    *("/Predict", "/Classify", "/Regress", "/MultiInference"),
)
# Codes that are faults of the server; the others are faults of the client.
_FAULTS = frozenset(
    {
        *(Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS),
    }
)
_BY_NUMBER = {code.value[0]: code for code in Code}


class SpanInterceptor(grpc.aio.ServerInterceptor):
    """Starts a span for each call to a model, and ends it with the call."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the method, wrapped in a span; other methods, and calls that are not sampled, are not wrapped."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.endswith(_METHODS):
            return handler
        metadata = handler_call_details.invocation_metadata or ()
        parents = [str(value) for name, value in metadata if name == TRACEPARENT]
        states = [str(value) for name, value in metadata if name == TRACESTATE]
        name = method.lstrip("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        span = self._tracer.start(name, parents, states, time.monotonic(), attributes)
        if span is None:
            return handler
        coding = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary, span), **coding)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_streamed(handler.stream_stream, span), **coding)
        return grpc.unary_stream_rpc_method_handler(_streamed(handler.unary_stream, span), **coding)


def _unary(behaviour: Any, span: RequestSpan) -> Any:
    async def traced(request: Any, context: Context) -> Any:
        current.set(span)
        try:
            response = await behaviour(request, context)
        except BaseException as error:
            _end(span, context, error)
            raise
        _end(span, context, None)
        return response

    return traced


def _streamed(behaviour: Any, span: RequestSpan) -> Any:
    async def traced(request: Any, context: Context) -> AsyncIterator[Any]:
        current.set(span)
        try:
            async for response in behaviour(request, context):
                yield response
        except BaseException as error:
            _end(span, context, error)
            raise
        _end(span, context, None)

    return traced


def _end(span: RequestSpan, context: Context, error: BaseException | None) -> None:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        code = Code.CANCELLED
    else:
        number: Any = context.code()
        code = _BY_NUMBER.get(getattr(number, "value", (number,))[0] if number else 0, Code.UNKNOWN)
        if error is not None and code is Code.OK:
            code = Code.UNKNOWN
    span.attributes["rpc.response.status_code"] = code.name
    if code is not Code.OK:
        span.attributes["error.type"] = code.name
    span.end((context.details() or "").partition("\n")[0] if code in _FAULTS else None)
