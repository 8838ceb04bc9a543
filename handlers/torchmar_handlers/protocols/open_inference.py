"""The Open Inference Protocol (KServe's v2, Triton's and others'): named tensors in and out.

https://github.com/kserve/open-inference-protocol, with Triton's extensions for binary data and classification:
https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from torchmar_handlers.common.reply import Reply
from torchmar_handlers.protocols import tensors
from torchmar_handlers.protocols.parsed_request import HandlerInfo, ParsedRequest, check_instance_count
from torchmar_handlers.protocols.plain import in_json
from torchmar_handlers.request import JSON, BadRequest, Request

#: The header with the length of the JSON before binary tensors, in requests and answers.
HEADER_LENGTH = "Inference-Header-Content-Length"

_BINARY = "application/octet-stream"
_MAX_RANK = 16
_SHARED_MEMORY = "shared_memory_region"
_SEQUENCE = "sequence_id"


@dataclass(frozen=True)
class _Output:
    """An output that a client names.

    Attributes:
        binary: whether to send it as bytes after the JSON; None: as for all outputs of the request.
        classes: number of the highest values to return, as ``value:index``; 0: the output itself.
    """

    name: str
    binary: bool | None = None
    classes: int = 0


@dataclass(frozen=True)
class _Outputs:
    """The outputs that a client requests: the named ones (none: all), and whether the others are binary."""

    named: Sequence[_Output]
    binary: bool

    @property
    def all_binary(self) -> bool:
        return all(self.is_binary(name) for name in self.named) if self.named else self.binary

    def is_binary(self, output: _Output) -> bool:
        return self.binary if output.binary is None else output.binary


def speaks(body: Mapping[str, Any]) -> bool:
    """Return whether a JSON body is of this protocol: its ``inputs`` are tensors."""
    inputs = body.get("inputs")
    return isinstance(inputs, list) and any(isinstance(tensor, Mapping) and "datatype" in tensor for tensor in inputs)


def read_binary(request: Request, header_length: Any, handler: HandlerInfo) -> ParsedRequest:
    """Return the instances of a request with tensors as bytes after the JSON."""
    payload = request.row.get("body")
    if isinstance(payload, Mapping):  # all of the body is JSON, which the worker has parsed
        return read(request, payload, handler)
    if not isinstance(payload, bytes | bytearray):
        raise BadRequest("a body with binary tensors has to be sent as application/octet-stream")
    try:
        length = int(header_length)
        body = json.loads(payload[:length]) if 0 < length <= len(payload) else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, Mapping):
        raise BadRequest(f"{HEADER_LENGTH} is not the length of the JSON before the binary tensors")
    return read(replace(request, row={"body": body}), body, handler, memoryview(payload)[length:])


def read(
    request: Request, body: Mapping[str, Any], handler: HandlerInfo, binary: memoryview | None = None
) -> ParsedRequest:
    """Return a request's instances: item i of every tensor belongs to instance i."""
    if not isinstance(body.get("inputs"), list) or not body["inputs"]:
        raise BadRequest("inputs is not an array of tensors, or empty")
    parameters = _parameters(body, "the request")
    if parameters.get(_SEQUENCE) not in (None, 0, ""):
        raise BadRequest("sequences are not kept: each request is answered by itself", 501)
    encoded = from_torchserves_grpc(request)
    arrays: dict[str, np.ndarray] = {}
    for position, tensor in enumerate(body["inputs"]):
        name, array, binary = _array(tensor, position, binary)
        if name in arrays:
            raise BadRequest(f"two inputs are called {name!r}")
        arrays[name] = _decoded(array, name) if encoded else array
    if binary is not None and len(binary):
        raise BadRequest(f"{len(binary)} bytes of binary data belong to no input")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        message = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise BadRequest(f"the first dimensions of the inputs differ, which is that of the batch: {message}")
    (count,) = set(counts.values())
    check_instance_count(count, handler.max_instances)
    rows = [{name: _instance(array[index]) for name, array in arrays.items()} for index in range(count)]
    if len(arrays) == 1 and not handler.named:
        rows = [next(iter(row.values())) for row in rows]
    requested = _Outputs(_named(body), bool(parameters.get("binary_data_output", False)))
    request = replace(request, as_bytes=requested.all_binary)
    id_field = {"id": body["id"]} if "id" in body else {}
    reply = partial(_reply, handler=handler, requested=requested, id_field=id_field)
    return ParsedRequest([request.part(row) for row in rows], reply, many=len(rows) > 1, error_key="error")


def from_torchserves_grpc(request: Request) -> bool:
    """Return whether TorchServe has made a request from a gRPC call: BYTES are then in base64.

    Such a request has no headers of a client, and the body names the model.
    """
    body, headers = request.row.get("body"), list(request.headers.values())
    return isinstance(body, Mapping) and "model_name" in body and headers == [{"content-type": JSON}]


def readable_by_torchserve(request: Request, reply: Reply, handler: HandlerInfo) -> Reply:
    """Return an error in a form that TorchServe can send over gRPC, in an output; other answers unchanged.

    After an answer that violates the protocol, TorchServe ends the worker, and the other requests of the batch fail,
    too.
    """
    if reply.status < 400 or not from_torchserves_grpc(request):
        return reply
    model_name, version = handler.served_as()
    error = {"name": "error", "shape": [1], "datatype": tensors.BYTES, "data": [reply.message]}
    document = {"id": request.row["body"].get("id", ""), "model_name": model_name, "model_version": version}
    return Reply.json({**document, "outputs": [error]})


def outputs(answers: Sequence[Any], columns: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """Return the answers to instances as arrays by name, each with the instances first.

    Args:
        answers: answers of the model, one for each instance.
        columns: the answers as the handler's columns; None: one array with the name ``output``. Names taken from the
            answers themselves would depend on their values.
    """
    if columns is not None:
        return {name: _stack(column) for name, column in columns.items()}
    return {"output": _stack(answers)}


def _reply(answers: Sequence[Any], *, handler: HandlerInfo, requested: _Outputs, id_field: Mapping[str, Any]) -> Reply:
    arrays = outputs(answers, handler.columns(answers))
    for output in requested.named:
        if output.name not in arrays:
            raise BadRequest(f"there is no output {output.name!r}; there are {', '.join(arrays)}")
    model_name, version = handler.served_as()
    described, contents = [], []
    for output in requested.named or [_Output(name) for name in arrays]:
        array = arrays[output.name]
        if output.classes:
            array = _classes(array, output)
        tensor: dict[str, Any] = {
            "name": output.name,
            "shape": list(array.shape),
            "datatype": tensors.datatype(array.dtype),
        }
        if requested.is_binary(output):
            contents.append(tensors.to_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(contents[-1])}
        else:
            tensor["data"] = array.ravel().tolist()
        described.append(tensor)
    document = {"model_name": model_name, "model_version": version, **id_field, "outputs": described}
    reply = Reply.json(document)
    if not contents:
        return reply
    return Reply(b"".join([reply.body, *contents]), _BINARY, headers={HEADER_LENGTH: str(len(reply.body))})


def _named(body: Mapping[str, Any]) -> list[_Output]:
    """Return the outputs that a client names."""
    entries = body.get("outputs") or []
    if not isinstance(entries, list) or not all(
        isinstance(output, Mapping) and isinstance(output.get("name"), str) for output in entries
    ):
        raise BadRequest("outputs is not an array of objects with a name")
    parsed = []
    for output in entries:
        place = f"output {output['name']!r}"
        parameters = _parameters(output, place)
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise BadRequest(f"{place}: classification is {classes!r}, not a number of classes")
        binary = parameters.get("binary_data")
        parsed.append(_Output(output["name"], None if binary is None else bool(binary), classes))
    return parsed


def _parameters(holder: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """Return the parameters of a request, an input or an output.

    Raises:
        BadRequest: they are no object; 501: they refer to shared memory.
    """
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, Mapping):
        raise BadRequest(f"{place}: parameters is not an object")
    if _SHARED_MEMORY in parameters:
        raise BadRequest(f"{place}: shared memory is not supported; send the data in the request", 501)
    return parameters


def _classes(array: np.ndarray, output: _Output) -> np.ndarray:
    """Return the highest values of each instance as texts ``value:index``, as Triton does."""
    if array.dtype.kind not in "biuf":
        raise BadRequest(f"output {output.name!r}: classification is of numbers, and this has texts")
    rows = array.reshape(len(array), -1)
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, : output.classes]
    texts = [[f"{row[index]:f}:{index}" for index in best] for row, best in zip(rows, order.tolist(), strict=True)]
    return np.array(texts, dtype=object)


def _array(tensor: Any, position: int, binary: memoryview | None) -> tuple[str, np.ndarray, memoryview | None]:
    """Return an input's name and array, and the remaining binary data."""
    if not isinstance(tensor, Mapping):
        raise BadRequest(f"inputs[{position}] is not an object with name, shape, datatype and data")
    name, shape, datatype = (tensor.get(key) for key in ("name", "shape", "datatype"))
    place = f"input {name!r}" if isinstance(name, str) else f"inputs[{position}]"
    if not isinstance(name, str) or not name:
        raise BadRequest(f"{place} has no name")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise BadRequest(f"{place}: the shape is not an array of sizes")
    if not shape or not shape[0] or len(shape) > _MAX_RANK:
        raise BadRequest(f"{place}: the shape {shape} has no instances; its first size is that of the batch")
    if not isinstance(datatype, str) or datatype not in tensors.DATATYPES:
        raise BadRequest(f"{place}: the datatype {datatype!r} is none of {', '.join(tensors.DATATYPES)}")
    count = math.prod(shape)
    size = _parameters(tensor, place).get("binary_data_size")
    if size is not None and "data" not in tensor:
        if binary is None or type(size) is not int or not 0 <= size <= len(binary):
            raise BadRequest(f"{place}: binary_data_size is {size!r}, which the body does not have")
        items = tensors.from_bytes(binary[:size], datatype, place)
        binary = binary[size:]
    elif "data" in tensor:
        items = tensors.from_json(tensor["data"], datatype, place)
    else:
        raise BadRequest(f"{place} has no data")
    if items.size != count:
        raise BadRequest(f"{place}: the shape {shape} is of {count} items, and there are {items.size}")
    return name, items.reshape(shape), binary


def _decoded(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype != object:
        return array
    try:
        return tensors.objects([base64.b64decode(item, validate=True) for item in array.ravel()]).reshape(array.shape)
    except (binascii.Error, ValueError):
        raise BadRequest(f"input {name!r}: BYTES are expected in base64") from None


def _instance(value: Any) -> Any:
    """Return one instance of a tensor; a single element as a Python value."""
    if not isinstance(value, np.ndarray):
        return value.item() if isinstance(value, np.generic) else value
    # Texts often have an additional dimension: (n, 1).
    return value.item() if value.dtype == object and value.size == 1 else value


def _stack(values: Any) -> np.ndarray:
    """Return one array with a value for each instance: of numbers or texts if all are, else of JSON."""
    with np.errstate(all="ignore"):
        try:
            if isinstance(values, np.ndarray):
                array = values
            elif len(values) == 1 and isinstance(values[0], np.ndarray):
                array = values[0][None]
            else:
                array = np.asarray(list(values))
            if array.dtype.kind in "biuf":
                return array
            if array.dtype.kind == "U":
                return array.astype(object)
        except ValueError:
            pass  # lists of different lengths
    return tensors.objects([value if isinstance(value, str) else in_json(value) for value in values])
