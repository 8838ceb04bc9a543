"""Tokens and errors of gRPC calls, with TorchServe's codes and texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import Message

from torchmar.grpc.channel import EXCEPTION
from torchmar.server.api_error import ApiError
from torchmar.server.models.startup import StillLoading
from torchmar.server.telemetry import logs
from torchmar.server.tokens import Tokens

Context = grpc.aio.ServicerContext[Any, Any]
Code = grpc.StatusCode
Method: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_CODES = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    409: Code.ABORTED,
    413: Code.RESOURCE_EXHAUSTED,
    416: Code.OUT_OF_RANGE,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    501: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}
# TorchServe's clients read the class of the exception, with its package, from the last line.
_PACKAGES = {
    "DownloadArchiveException": "org.pytorch.serve.archive.",
    "InvalidModelException": "org.pytorch.serve.archive.model.",
    "ModelException": "org.pytorch.serve.archive.model.",
    "ModelNotFoundException": "org.pytorch.serve.archive.model.",
    "ModelVersionNotFoundException": "org.pytorch.serve.archive.model.",
}
_REFLECTION = "/grpc.reflection."  # a client that reads the API's description may not have a token yet
_NO_TOKEN = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"


class CallError(Exception):
    """The error that a call ends with.

    Args:
        code: gRPC status code.
        details: message; its last line is the class of TorchServe's exception, where its clients read it.
        kind: class of TorchServe's exception, if it is not in the details; sent as metadata `EXCEPTION`.
    """

    def __init__(self, code: grpc.StatusCode, details: str, kind: str = "") -> None:
        super().__init__(details)
        self.code, self.details, self.kind = code, details, kind

    async def end(self, context: Context) -> None:
        """End a call with this error; never returns."""
        await context.abort(self.code, self.details, ((EXCEPTION, self.kind),) if self.kind else ())

    def plain(self) -> CallError:
        """Return the same error without the class in the details."""
        message, _, last = self.details.rpartition("\n")
        kind = last.removesuffix(".()").rpartition(".")[2]
        return CallError(self.code, message, kind) if kind.endswith("Exception") else self


def code(status: int) -> grpc.StatusCode:
    """Return TorchServe's code for an HTTP status."""
    if status in _CODES:
        return _CODES[status]
    if 400 <= status < 500:
        return Code.FAILED_PRECONDITION
    return Code.INTERNAL if 500 <= status < 600 else Code.UNKNOWN


def details(error: ApiError) -> str:
    """Return an error in TorchServe's format: its message, and on another line the class of its exception."""
    return f"{error}\n{_PACKAGES.get(error.type, 'org.pytorch.serve.http.')}{error.type}"


def missing_parameter(parameter: str) -> CallError:
    """Return TorchServe's error for a call without a required field; its code is INTERNAL there."""
    return CallError(Code.INTERNAL, f"Parameter {parameter} is required.\nBadRequestException.()")


def unary(call: Callable[[Any, Context], Awaitable[Message]], message: type[Message]) -> Method:
    """Return a method with one request and one response."""

    async def behaviour(request: Message, context: Context) -> Message:
        while True:
            try:
                return await call(request, context)
            except StillLoading as loading:
                if await loading.wait():
                    continue
                failure = call_error(loading)
            except Exception as error:
                failure = call_error(error)
            break
        await failure.end(context)
        raise AssertionError  # because abort never returns

    return grpc.unary_unary_rpc_method_handler(behaviour, message.FromString, _serialized)


def streamed(
    call: Callable[[Any, Context], AsyncIterator[Message]], message: type[Message], *, many: bool = False
) -> Method:
    """Return a method with one or more requests and several responses."""

    async def behaviour(request: Any, context: Context) -> AsyncIterator[Message]:
        while True:
            try:
                async for response in call(request, context):
                    yield response
                return
            except StillLoading as loading:  # before the first response; streams can only be read once
                if not many and await loading.wait():
                    continue
                failure = call_error(loading)
            except Exception as error:
                failure = call_error(error)
            break
        await failure.end(context)

    make: Any = grpc.stream_stream_rpc_method_handler if many else grpc.unary_stream_rpc_method_handler
    method: Method = make(behaviour, message.FromString, _serialized)
    return method


def call_error(error: Exception) -> CallError:
    """Return the error for an exception in a call; unexpected exceptions are logged."""
    if isinstance(error, CallError):
        return error
    if isinstance(error, ApiError):
        return CallError(code(error.status), details(error))
    if not isinstance(error, asyncio.CancelledError):
        logs.SERVER.error("a call over gRPC failed", exc_info=error)
    return CallError(Code.INTERNAL, "The request failed; the server's log has the reason.\nInternalServerException.()")


# Probes have no token; their responses contain only the server's health.
_HEALTH = (
    "InferenceAPIsService/Ping",
    "/ServerLive",
    "/ServerReady",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/List",
    "grpc.health.v1.Health/Watch",
)

_READS = ("/DescribeModel", "/ListModels")  # calls of the management API that change nothing


class TokenCheck(grpc.aio.ServerInterceptor):
    """Ends calls without a valid token before their requests are read.

    Args:
        tokens: the valid ones.
        kind: ``inference`` or ``management``.
        health: whether health checks also need a token.
    """

    def __init__(self, tokens: Tokens, kind: Any, *, health: bool = False) -> None:
        self._tokens, self._kind, self._health = tokens, kind, health

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Check the token of a call; as in TorchServe, an unknown method always gets UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_REFLECTION):
            return handler
        if not self._health and handler_call_details.method.endswith(_HEALTH):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        reads = self._kind == "management" and handler_call_details.method.endswith(_READS)
        try:
            self._tokens.check(str(metadata.get("authorization", "")), "read" if reads else self._kind)
        except ApiError:
            if handler.request_streaming:
                return grpc.stream_stream_rpc_method_handler(_deny)
            if handler.response_streaming:
                return grpc.unary_stream_rpc_method_handler(_deny)
            return grpc.unary_unary_rpc_method_handler(_deny)
        return handler


async def _deny(_: Any, context: Context) -> Any:
    await context.abort(Code.PERMISSION_DENIED, _NO_TOKEN)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()
