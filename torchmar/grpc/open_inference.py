"""The Open Inference Protocol (KServe v2) over gRPC."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from torchmar.errors import ServerError, TorchmarError
from torchmar.grpc.channel import Client, Reply
from torchmar.grpc.wire import open_inference_pb2 as wire
from torchmar.inference import ENABLE_OPEN_INFERENCE, Tensor
from torchmar.tensor_elements import BF16, BYTES, pack, unpack

_TORCHSERVES_SERVICE = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"
_ONLY_RAW = ("FP16", BF16)
_NO_METHOD = "Method not found"
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True)
class TensorMetadata:
    """An input or output of a model.

    Attributes:
        name: name of the tensor.
        datatype: name of its type in the protocol, such as FP32.
        shape: its dimensions, the batch first; -1 is any size.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """The description of a model.

    Attributes:
        name: name of the model.
        versions: its versions.
        inputs: its inputs; empty for TorchServe 0.12.0.
        outputs: its outputs; empty for TorchServe 0.12.0.
    """

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()


class GrpcOpenInference(Client):
    """A client of the Open Inference Protocol over gRPC; a context manager. It may be used by several threads.

    It calls the service by the protocol's own name, or by TorchServe's name if the server only has that.

    Args:
        server: the endpoint, or only the address: ``grpc://host:7070``, or ``grpcs://`` for TLS; default: the server
            that runs in ``.torchmar``, or TorchServe's default address.
        timeout: seconds to wait for a response (gRPC's deadline).

    Raises:
        ConnectError: by every method: no server answers.
        ServerError: by every method: the server or the handler answers with an error; with status 501: TorchServe
            runs without ``ts_open_inference_protocol=true``.

    Examples:
        >>> from torchmar.grpc import GrpcOpenInference
        >>> with GrpcOpenInference() as client:
        ...     client.live(), client.model_ready("lengths")
        (True, True)
    """

    _api = "inference"
    _service = "inference.GRPCInferenceService"

    def live(self) -> bool:
        """Return whether the server is up."""
        return self._call("ServerLive", wire.ServerLiveRequest(), wire.ServerLiveResponse).live

    def ready(self) -> bool:
        """Return whether the server is ready for requests; TorchServe's response is always true."""
        return self._call("ServerReady", wire.ServerReadyRequest(), wire.ServerReadyResponse).ready

    def model_ready(self, name: str, version: str | None = None) -> bool:
        """Return whether a model has as many ready workers as configured."""
        request = wire.ModelReadyRequest(name=name, version=version)
        return self._call("ModelReady", request, wire.ModelReadyResponse).ready

    def model_metadata(self, name: str, version: str | None = None) -> ModelMetadata:
        """Return the metadata of a model."""
        request = wire.ModelMetadataRequest(name=name, version=version)
        reply = self._call("ModelMetadata", request, wire.ModelMetadataResponse)
        return ModelMetadata(reply.name, tuple(reply.versions), _described(reply.inputs), _described(reply.outputs))

    def infer(
        self,
        name: str,
        inputs: Sequence[Tensor],
        version: str | None = None,
        *,
        id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> list[Tensor]:
        """Return the outputs of a model.

        Args:
            name: name of the model.
            inputs: named tensors; under TorchServe the handler gets elements of BYTES in base64.
            version: version of the model; default: the default version.
            id: id that is sent to the handler.
            metadata: metadata of the call, such as ``traceparent``; names in lower case.
            timeout: seconds; default: the client's.

        Raises:
            ServerError: the response is an error; 400 for FP16 and BF16 under TorchServe: the protocol has only
                raw contents for these, and TorchServe drops them.
            TorchmarError: the protocol has no such datatype, or it cannot represent an element.
        """
        reply = self.send(infer_request(name, inputs, version, id=id), timeout, metadata)
        quoted = self._channel.service == _TORCHSERVES_SERVICE
        if reply.raw_output_contents:
            return [_raw_output(*output) for output in zip(reply.outputs, reply.raw_output_contents, strict=True)]
        return [_output(output, quoted=quoted) for output in reply.outputs]

    def send(
        self,
        request: wire.ModelInferRequest,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> wire.ModelInferResponse:
        """Send a message unchanged, and return the response; it raises the errors of `infer`."""
        return self._call("ModelInfer", request, wire.ModelInferResponse, timeout, metadata)

    @property
    def service(self) -> str:
        """The full name of the service; after a call to TorchServe, it is TorchServe's own."""
        return self._channel.service

    def _call(
        self,
        method: str,
        request: Message,
        reply: type[Reply],
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Reply:
        if self._channel.service == _TORCHSERVES_SERVICE and getattr(request, "raw_input_contents", None):
            raise ServerError(f"TorchServe does not support {' or '.join(_ONLY_RAW)} over gRPC", status=400)
        try:
            return self._channel.call(method, request, reply, timeout, metadata)
        except ServerError as error:
            if error.status != 501 or not str(error).startswith(_NO_METHOD):
                raise
            if self._channel.service == _TORCHSERVES_SERVICE:
                error.hint = ENABLE_OPEN_INFERENCE
                raise
        self._channel.service = _TORCHSERVES_SERVICE
        return self._call(method, request, reply, timeout, metadata)


def infer_request(
    name: str, inputs: Sequence[Tensor], version: str | None = None, *, id: str | None = None
) -> wire.ModelInferRequest:
    """Return the message of an inference request; the arguments are those of `GrpcOpenInference.infer`."""
    request = wire.ModelInferRequest(model_name=name, model_version=version, id=id)
    raw = any(tensor.datatype in _ONLY_RAW for tensor in inputs)
    for tensor in inputs:
        _add(request, tensor, raw=raw)
    return request


def _described(tensors: Iterable[wire.ModelMetadataResponse.TensorMetadata]) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)


def _add(request: wire.ModelInferRequest, tensor: Tensor, *, raw: bool) -> None:
    """Add an input to a request; either all inputs of a request are raw, or none."""
    entry = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    try:
        content = pack(tensor.datatype, tensor.data)
    except (ValueError, TypeError) as error:
        raise TorchmarError(f"input {tensor.name!r}: {error}") from None
    if raw:
        request.raw_input_contents.append(content)
    else:
        getattr(entry.contents, _CONTENTS[tensor.datatype]).extend(unpack(tensor.datatype, content))


def _raw_output(output: wire.ModelInferResponse.InferOutputTensor, content: bytes) -> Tensor:
    data = list(unpack(output.datatype, content))
    if output.datatype == BYTES:
        data = [_text(item, quoted=False) for item in data]
    return Tensor(output.name, output.datatype, tuple(output.shape), data)


def _output(output: wire.ModelInferResponse.InferOutputTensor, *, quoted: bool) -> Tensor:
    data: list[Any] = list(getattr(output.contents, _CONTENTS.get(output.datatype, "fp32_contents")))
    if output.datatype == "BYTES":
        data = [_text(item, quoted=quoted) for item in data]
    return Tensor(output.name, output.datatype, tuple(output.shape), data)


def _text(element: bytes, *, quoted: bool) -> Any:
    # TorchServe's responses contain strings as in the handler's JSON, with their quotes.
    with contextlib.suppress(ValueError):
        return json.loads(element) if quoted else element.decode()
    return element
