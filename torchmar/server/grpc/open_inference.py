"""The Open Inference Protocol (KServe v2) over gRPC, with some of Triton's extensions.

The contract is ``torchmar/grpc/wire/open_inference.proto``. It is served under two names: that of KServe and Triton,
``inference.GRPCInferenceService``, and TorchServe's. A handler of torchmar gets and returns binary tensors; any other
handler gets the same JSON as over REST, or, under TorchServe's name, the JSON that TorchServe would send.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import ParseDict

from torchmar.grpc.wire import open_inference_pb2 as wire
from torchmar.server.api import model_documents, open_inference, tensors
from torchmar.server.api.tensors import Tensor
from torchmar.server.grpc import messages
from torchmar.server.grpc.calls import (
    CallError,
    Code,
    Context,
    Method,
    call_error,
    code,
    missing_parameter,
    streamed,
    unary,
)
from torchmar.server.grpc.model_call import ModelCall, described, error_message
from torchmar.server.models.health import ready
from torchmar.server.models.registry import Registry, Version
from torchmar.server.models.startup import StillLoading
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.workers.jobs import Part, Reply
from torchmar.tensor_elements import BYTES, pack, unpack

NAME = "inference.GRPCInferenceService"
TORCHSERVES_NAME = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"

_MAX_AHEAD = 64  # requests of a stream that may wait for their responses
_FINAL = "triton_final_response"
_SHARED_MEMORY = ("SystemSharedMemory", "CudaSharedMemory")
_UNSUPPORTED = {
    "RepositoryModelLoad": open_inference.LOADING,
    "RepositoryModelUnload": open_inference.LOADING,
    "TraceSetting": open_inference.TRACE,
    "LogSettings": open_inference.LOGGING,
    **{
        f"{kind}{verb}": open_inference.SHARED_MEMORY
        for kind in _SHARED_MEMORY
        for verb in ("Status", "Register", "Unregister")
    },
}


class OpenInference:
    """The service, under one of its names.

    Args:
        name: name of the service.
        registry: the models.
        metrics: provides the statistics.
        model_call: sends calls to the models.
        encoded: whether handlers that read JSON get bytes in base64, as handlers that were written for KServe's wrapper
            of TorchServe expect.
    """

    def __init__(
        self, name: str, registry: Registry, metrics: Metrics, model_call: ModelCall, *, encoded: bool = False
    ) -> None:
        self.name = name
        self._torchserves = name == TORCHSERVES_NAME
        self._encoded = encoded or self._torchserves
        self._registry, self._metrics, self._call = registry, metrics, model_call

    def methods(self) -> Mapping[str, Method]:
        """Return the methods by their names, including those of unsupported extensions."""
        return {
            "ServerLive": self._unary(self.server_live, wire.ServerLiveRequest),
            "ServerReady": self._unary(self.server_ready, wire.ServerReadyRequest),
            "ServerMetadata": self._unary(self.server_metadata, wire.ServerMetadataRequest),
            "ModelReady": self._unary(self.model_ready, wire.ModelReadyRequest),
            "ModelMetadata": self._unary(self.model_metadata, wire.ModelMetadataRequest),
            "ModelInfer": self._unary(self.infer, wire.ModelInferRequest),
            "ModelStreamInfer": streamed(self.stream, wire.ModelInferRequest, many=True),
            "ModelConfig": self._unary(self.model_config, wire.ModelConfigRequest),
            "ModelStatistics": self._unary(self.model_statistics, wire.ModelStatisticsRequest),
            "RepositoryIndex": self._unary(self.index, wire.RepositoryIndexRequest),
            **{name: _unsupported(message) for name, message in _UNSUPPORTED.items()},
        }

    async def server_live(self, request: wire.ServerLiveRequest, context: Context) -> wire.ServerLiveResponse:
        """Return that the server is up."""
        return wire.ServerLiveResponse(live=True)

    async def server_ready(self, request: wire.ServerReadyRequest, context: Context) -> wire.ServerReadyResponse:
        """Return whether every model is ready, as ``/v2/health/ready`` does."""
        return wire.ServerReadyResponse(ready=ready(self._registry))

    async def server_metadata(
        self, request: wire.ServerMetadataRequest, context: Context
    ) -> wire.ServerMetadataResponse:
        """Return the server's name, version and extensions."""
        return ParseDict(model_documents.server(), wire.ServerMetadataResponse())

    async def model_ready(self, request: wire.ModelReadyRequest, context: Context) -> wire.ModelReadyResponse:
        """Return whether a model is ready, which means that all of its configured workers are."""
        try:
            pool = self._find(request.name, request.version, "name").pool
        except StillLoading:
            return wire.ModelReadyResponse(ready=False)
        return wire.ModelReadyResponse(ready=0 < pool.min_workers <= pool.ready)

    async def model_metadata(self, request: wire.ModelMetadataRequest, context: Context) -> wire.ModelMetadataResponse:
        """Return a model's versions, inputs and outputs."""
        version = self._find(request.name, request.version, "model_name")
        return ParseDict(model_documents.metadata(self._registry, version), wire.ModelMetadataResponse())

    async def model_config(self, request: wire.ModelConfigRequest, context: Context) -> wire.ModelConfigResponse:
        """Return the configuration of a model."""
        version = self._find(request.name, request.version, "name")
        return ParseDict({"config": model_documents.config(version)}, wire.ModelConfigResponse())

    async def model_statistics(
        self, request: wire.ModelStatisticsRequest, context: Context
    ) -> wire.ModelStatisticsResponse:
        """Return the statistics of a version, of a model's versions, or of all models."""
        document = model_documents.statistics(self._registry, self._metrics, request.name, request.version)
        return ParseDict(document, wire.ModelStatisticsResponse())

    async def index(self, request: wire.RepositoryIndexRequest, context: Context) -> wire.RepositoryIndexResponse:
        """Return the registered versions and their states."""
        models = model_documents.index(self._registry, ready=request.ready)
        return ParseDict({"models": models}, wire.RepositoryIndexResponse())

    async def infer(self, request: wire.ModelInferRequest, context: Context) -> wire.ModelInferResponse:
        """Return the response to a request."""
        version = self._find(request.model_name, request.model_version, "model_name")
        await described(version, context)
        self._call.admit(version, context)
        raw = bool(request.raw_input_contents)
        try:
            inputs = list(messages.inputs(request))
            headers, row = self._row(request, inputs, binary=version.pool.description.get("binary") is True)
        except ValueError as error:
            raise CallError(Code.INVALID_ARGUMENT, f"{error}\nBadRequestException.()") from None
        replies = [reply async for reply in self._call.replies(version, [row], context, headers)]
        reply = replies[-1]
        if reply.status >= 300:
            raise _reply_error(reply)
        body = b"".join(part.body for part in replies)
        length = {name.lower(): value for name, value in reply.headers.items()}.get(tensors.HEADER_LENGTH.lower())
        try:
            document, outputs = self._split(body, None if length is None else int(length))
            return messages.response({"id": request.id, **document}, outputs, raw=raw)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            message = f"the response of model {version.name} is not of the Open Inference Protocol: {error!r}"
            raise CallError(Code.INTERNAL, f"{message}\nInternalServerException.()") from None

    async def stream(
        self, requests: AsyncIterator[wire.ModelInferRequest], context: Context
    ) -> AsyncIterator[wire.ModelStreamInferResponse]:
        """Answer the requests of a stream in order; if one fails, it gets an error, and the stream continues.

        Workers get the requests as they arrive, so that they can form batches.
        """
        responses: asyncio.Queue[asyncio.Task[wire.ModelStreamInferResponse] | None] = asyncio.Queue(_MAX_AHEAD)

        async def read() -> None:
            try:
                async for request in requests:
                    await responses.put(asyncio.create_task(self._stream_response(request, context)))
            finally:
                await responses.put(None)

        reading = asyncio.create_task(read())
        current: asyncio.Task[wire.ModelStreamInferResponse] | None = None
        try:
            while (current := await responses.get()) is not None:
                yield await current
        finally:
            reading.cancel()
            while current is not None:
                current.cancel()
                current = None if responses.empty() else responses.get_nowait()

    async def _stream_response(
        self, request: wire.ModelInferRequest, context: Context
    ) -> wire.ModelStreamInferResponse:
        try:
            response = await self.infer(request, context)
        except Exception as error:
            error_response = wire.ModelStreamInferResponse(error_message=call_error(error).plain().details)
            error_response.infer_response.id = request.id
            return error_response
        response.parameters[_FINAL].bool_param = True
        return wire.ModelStreamInferResponse(infer_response=response)

    def _find(self, name: str, version: str, parameter: str) -> Version:
        """Return a version; the default one if ``version`` is empty.

        Raises:
            CallError: the name is empty.
            ApiError: 404, the version does not exist.
        """
        if not name:
            raise (
                missing_parameter(parameter)
                if self._torchserves
                else CallError(Code.INVALID_ARGUMENT, f"{parameter} is empty")
            )
        return self._registry.find(name, version or None)

    def _row(
        self, request: wire.ModelInferRequest, inputs: Sequence[Tensor], *, binary: bool
    ) -> tuple[dict[str, str], Part]:
        """Return the headers and the row for a handler: in binary or in JSON.

        Raises:
            ValueError: JSON cannot represent an input.
        """
        parameters = messages.parameters(request.parameters)
        outputs = [(output.name, messages.parameters(output.parameters)) for output in request.outputs]
        if binary:
            parameters["binary_data_output"] = True
            outputs = [(name, {**options, "binary_data": True}) for name, options in outputs]
        document: dict[str, Any] = {
            "id": request.id,
            "parameters": parameters,
            "outputs": [{"name": name, "parameters": options} for name, options in outputs],
        }
        document = {key: value for key, value in document.items() if value}
        if binary:
            body, length = tensors.joined(document, inputs, "inputs")
            return {tensors.HEADER_LENGTH: str(length)}, Part("body", "application/octet-stream", body)
        if self._encoded:
            inputs = [_encoded(tensor) for tensor in inputs]
        if self._torchserves:
            document = {"id": request.id, "model_name": request.model_name, **document}
        document["inputs"] = [tensors.in_json(tensor) for tensor in inputs]
        body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        return {}, Part("body", "application/json", body)

    def _split(self, body: bytes, header_length: int | None) -> tuple[dict[str, Any], list[Tensor]]:
        document, outputs = tensors.split(body, header_length, "outputs")
        if header_length is None and self._torchserves:
            outputs = [_quoted(tensor) for tensor in outputs]
        return document, outputs

    def _unary(self, call: Callable[[Any, Context], Any], message: Any) -> Method:
        if self._torchserves:
            return unary(call, message)

        async def plain(request: Any, context: Context) -> Any:
            """Send errors without TorchServe's exception classes, which only its clients read."""
            try:
                return await call(request, context)
            except Exception as error:
                raise call_error(error).plain() from None

        return unary(plain, message)


def _reply_error(reply: Reply) -> CallError:
    if reply.message:
        return CallError(code(reply.status), f"{reply.message}\norg.pytorch.serve.http.InternalServerException")
    message, kind = error_message(reply)
    return CallError(code(reply.status), f"{message}\norg.pytorch.serve.http.{kind}")


def _encoded(tensor: Tensor) -> Tensor:
    """Return a tensor in the form that TorchServe sends to the handler: bytes in base64."""
    if tensor.datatype != BYTES:
        return tensor
    items = unpack(BYTES, tensor.content)
    return tensor._replace(content=pack(BYTES, [base64.b64encode(item) for item in items]))


def _quoted(tensor: Tensor) -> Tensor:
    """Return a tensor in the form that TorchServe sends to the client: strings as JSON, with quotes."""
    if tensor.datatype != BYTES:
        return tensor
    items = unpack(BYTES, tensor.content)
    quoted = [json.dumps(item.decode(), ensure_ascii=False) for item in items]
    return tensor._replace(content=pack(BYTES, quoted))


def _unsupported(message: str) -> Method:
    async def fail(_: bytes, context: Context) -> bytes:
        await context.abort(Code.UNIMPLEMENTED, message)
        raise AssertionError  # because abort never returns

    return grpc.unary_unary_rpc_method_handler(fail)
