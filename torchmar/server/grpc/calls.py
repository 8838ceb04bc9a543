"""What every call over gRPC has in common: a token, and errors in TorchServe's codes and words."""

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
# TorchServe's clients read the class of its exception from the last line, with its package.
_PACKAGES = {
    "DownloadArchiveException": "org.pytorch.serve.archive.",
    "InvalidModelException": "org.pytorch.serve.archive.model.",
    "ModelException": "org.pytorch.serve.archive.model.",
    "ModelNotFoundException": "org.pytorch.serve.archive.model.",
    "ModelVersionNotFoundException": "org.pytorch.serve.archive.model.",
}
_REFLECTION = "/grpc.reflection."  # who wants to know how to ask may have no token yet
_NO_TOKEN = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"


class Failed(Exception):
    """A call that ends with an error.

    Args:
        code: gRPC's.
        details: what is wrong; on the last line the class of TorchServe's exception, where its clients read it.
        kind: that class, where they do not; sent as metadata `EXCEPTION`.
    """

    def __init__(self, code: grpc.StatusCode, details: str, kind: str = "") -> None:
        super().__init__(details)
        self.code, self.details, self.kind = code, details, kind

    async def end(self, context: Context) -> None:
        """End a call with this error; never returns."""
        await context.abort(self.code, self.details, ((EXCEPTION, self.kind),) if self.kind else ())

    def plain(self) -> Failed:
        """Return the same without the class in the details."""
        message, _, last = self.details.rpartition("\n")
        kind = last.removesuffix(".()").rpartition(".")[2]
        return Failed(self.code, message, kind) if kind.endswith("Exception") else self


def code(status: int) -> grpc.StatusCode:
    """Return the code that TorchServe has for a status of HTTP."""
    if status in _CODES:
        return _CODES[status]
    if 400 <= status < 500:
        return Code.FAILED_PRECONDITION
    return Code.INTERNAL if 500 <= status < 600 else Code.UNKNOWN


def details(refusal: ApiError) -> str:
    """Return a refusal in TorchServe's words: its message, and the class of its exception on a line of its own."""
    return f"{refusal}\n{_PACKAGES.get(refusal.type, 'org.pytorch.serve.http.')}{refusal.type}"


def bad(parameter: str) -> Failed:
    """Return TorchServe's error for a call that does not name its model; INTERNAL, of all codes."""
    return Failed(Code.INTERNAL, f"Parameter {parameter} is required.\nBadRequestException.()")


def unary(answer: Callable[[Any, Context], Awaitable[Message]], request: type[Message]) -> Method:
    """Return a method of one request and one answer."""

    async def called(asked: Message, context: Context) -> Message:
        while True:
            try:
                return await answer(asked, context)
            except StillLoading as loading:
                if await loading.wait():
                    continue
                failing = failed(loading)
            except Exception as error:
                failing = failed(error)
            break
        await failing.end(context)
        raise AssertionError  # abort never returns

    return grpc.unary_unary_rpc_method_handler(called, request.FromString, _serialized)


def streamed(
    answer: Callable[[Any, Context], AsyncIterator[Message]], request: type[Message], *, many: bool = False
) -> Method:
    """Return a method of one request, or of several, and several answers."""

    async def called(asked: Any, context: Context) -> AsyncIterator[Message]:
        while True:
            try:
                async for one in answer(asked, context):
                    yield one
                return
            except StillLoading as loading:  # before the first answer; requests of a stream are read only once
                if not many and await loading.wait():
                    continue
                failing = failed(loading)
            except Exception as error:
                failing = failed(error)
            break
        await failing.end(context)

    make: Any = grpc.stream_stream_rpc_method_handler if many else grpc.unary_stream_rpc_method_handler
    made: Method = make(called, request.FromString, _serialized)
    return made


def failed(error: Exception) -> Failed:
    """Return the error of a call for what was raised in it; what is a fault of the server is logged."""
    if isinstance(error, Failed):
        return error
    if isinstance(error, ApiError):
        return Failed(code(error.status), details(error))
    if not isinstance(error, asyncio.CancelledError):
        logs.SERVER.error("a call over gRPC failed", exc_info=error)
    return Failed(Code.INTERNAL, "the server has failed; its log says how\nInternalServerException.()")


# Probes have no token; the answers tell of the server's health and of nothing else.
_HEALTH = ("InferenceAPIsService/Ping", "/ServerLive", "/ServerReady", "grpc.health.v1.Health/Check", "Health/Watch")


class TokenCheck(grpc.aio.ServerInterceptor):
    """Ends calls without the right token before their requests are read.

    Args:
        tokens: which are right.
        kind: ``inference`` or ``management``.
        health: whether health checks need one, too.
    """

    def __init__(self, tokens: Tokens, kind: Any, *, health: bool = False) -> None:
        self._tokens, self._kind, self._health = tokens, kind, health

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Check the token of a call; an unknown method gets UNIMPLEMENTED in any case, as by TorchServe."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_REFLECTION):
            return handler
        if not self._health and handler_call_details.method.endswith(_HEALTH):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        try:
            self._tokens.check(str(metadata.get("authorization", "")), self._kind)
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
