"""The Open Inference Protocol (KServe v2) over gRPC; the contract is ``torchmar/rpc/wire/open_inference.proto``.

A handler gets the request as the JSON that it would get over REST, and its answer is JSON of the same protocol.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torchmar
from torchmar.rpc.wire import open_inference_pb2 as wire
from torchmar.server.health import ready
from torchmar.server.jobs import Input
from torchmar.server.registry import Registry
from torchmar.server.rpc.asking import Asking
from torchmar.server.rpc.calls import Code, Context, Failed, Method, bad, unary

# Where a tensor's elements stand, and how they do in raw contents.
_CONTENTS = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
    "BYTES": ("bytes_contents", ""),
}
_HALF = "FP16"  # has raw contents only


class OpenInference:
    """The service.

    Args:
        registry: the models.
        asking: what asks them.
    """

    name = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"

    def __init__(self, registry: Registry, asking: Asking) -> None:
        self._registry, self._asking = registry, asking

    def methods(self) -> Mapping[str, Method]:
        """Return the methods by their names."""
        return {
            "ServerLive": unary(self.server_live, wire.ServerLiveRequest),
            "ServerReady": unary(self.server_ready, wire.ServerReadyRequest),
            "ServerMetadata": unary(self.server_metadata, wire.ServerMetadataRequest),
            "ModelReady": unary(self.model_ready, wire.ModelReadyRequest),
            "ModelMetadata": unary(self.model_metadata, wire.ModelMetadataRequest),
            "ModelInfer": unary(self.infer, wire.ModelInferRequest),
        }

    async def server_live(self, asked: wire.ServerLiveRequest, context: Context) -> wire.ServerLiveResponse:
        """Say that the server is up."""
        return wire.ServerLiveResponse(live=True)

    async def server_ready(self, asked: wire.ServerReadyRequest, context: Context) -> wire.ServerReadyResponse:
        """Say whether every model answers, as ``/v2/health/ready`` does."""
        return wire.ServerReadyResponse(ready=ready(self._registry))

    async def server_metadata(self, asked: wire.ServerMetadataRequest, context: Context) -> wire.ServerMetadataResponse:
        """Say what the server is."""
        return wire.ServerMetadataResponse(name="torchmar", version=torchmar.__version__)

    async def model_ready(self, asked: wire.ModelReadyRequest, context: Context) -> wire.ModelReadyResponse:
        """Say whether a model takes requests: it has workers, as many as it should."""
        if not asked.name:
            raise bad("name")
        pool = self._registry.find(asked.name, asked.version or None).pool
        return wire.ModelReadyResponse(ready=0 < pool.min_workers <= pool.ready)

    async def model_metadata(self, asked: wire.ModelMetadataRequest, context: Context) -> wire.ModelMetadataResponse:
        """Say which versions of a model there are; what it takes and gives only its handler knows."""
        if not asked.name:
            raise bad("model_name")
        self._registry.find(asked.name, asked.version or None)
        return wire.ModelMetadataResponse(name=asked.name, versions=list(self._registry.models[asked.name].versions))

    async def infer(self, asked: wire.ModelInferRequest, context: Context) -> wire.ModelInferResponse:
        """Answer a request."""
        if not asked.model_name:
            raise bad("model_name")
        found = self._asking.find(asked.model_name, asked.model_version)
        body = await self._asking.whole(found, [Input("body", "application/json", _document(asked))], context)
        try:
            return _response(json.loads(body))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            message = f"the answer of model {found.name} is not of the Open Inference Protocol: {error!r}"
            raise Failed(Code.INTERNAL, f"{message}\nInternalServerException.()") from None


def _document(asked: wire.ModelInferRequest) -> bytes:
    """Return a request as the JSON that TorchServe makes of it."""
    inputs = []
    for index, one in enumerate(asked.inputs):
        raw = asked.raw_input_contents[index] if index < len(asked.raw_input_contents) else None
        try:
            data = _elements(one, raw)
        except (ValueError, struct.error) as error:
            raise Failed(Code.INVALID_ARGUMENT, f"input {one.name!r}: {error}\nBadRequestException.()") from None
        inputs.append({"name": one.name, "shape": list(one.shape), "datatype": one.datatype, "data": data})
    document = {"id": asked.id, "model_name": asked.model_name, "inputs": inputs}
    try:
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        message = "an element is infinite or no number, which JSON, and so the handler, has no word for"
        raise Failed(Code.INVALID_ARGUMENT, f"{message}\nBadRequestException.()") from None


def _elements(tensor: wire.ModelInferRequest.InferInputTensor, raw: bytes | None) -> list[Any]:
    datatype = tensor.datatype
    if datatype not in _CONTENTS and (datatype != _HALF or raw is None):
        raise ValueError(f"TorchServe takes no {datatype} over gRPC")
    if raw is None:
        elements = list(getattr(tensor.contents, _CONTENTS[datatype][0]))
    elif datatype == "BYTES":
        elements = list(_texts(raw))
    else:
        letter = "e" if datatype == _HALF else _CONTENTS[datatype][1]
        elements = [value for (value,) in struct.iter_unpack(f"<{letter}", raw)]
    # TorchServe hands bytes to handlers in base64.
    return [base64.b64encode(one).decode() for one in elements] if datatype == "BYTES" else elements


def _texts(raw: bytes) -> Iterator[bytes]:
    """Yield what stands in raw contents of BYTES: four bytes of length before each."""
    place = 0
    while place < len(raw):
        (length,) = struct.unpack_from("<I", raw, place)
        place += 4 + length
        if place > len(raw):
            raise ValueError("the raw contents end within an element")
        yield raw[place - length : place]


def _response(said: Any) -> wire.ModelInferResponse:
    response = wire.ModelInferResponse(
        model_name=said["model_name"], model_version=said.get("model_version") or "", id=said.get("id") or ""
    )
    for one in said["outputs"]:
        datatype = one["datatype"]
        if datatype not in _CONTENTS:
            raise ValueError(f"output {one['name']!r} is {datatype}")
        output = response.outputs.add(name=one["name"], datatype=datatype, shape=one["shape"])
        elements = _flat(one["data"])
        # As TorchServe: texts as they stand in the JSON, quotes and all.
        data = (json.dumps(element, ensure_ascii=False).encode() for element in elements)
        getattr(output.contents, _CONTENTS[datatype][0]).extend(data if datatype == "BYTES" else elements)
    return response


def _flat(data: Iterable[Any]) -> Iterator[Any]:
    for one in data:
        if isinstance(one, list):
            yield from _flat(one)
        else:
            yield one
