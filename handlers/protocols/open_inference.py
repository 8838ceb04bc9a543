"""The Open Inference Protocol, which is KServe's v2, Triton's and others': named tensors in and out.

https://github.com/kserve/open-inference-protocol, with the binary data extension for inputs.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from torchmar_handlers.protocols.asking import Asking, Served, refuse_many
from torchmar_handlers.protocols.plain import bare
from torchmar_handlers.reply import Reply
from torchmar_handlers.request import BadRequest, Request

_DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
_BYTES = "BYTES"
_MAX_RANK = 16


def speaks(body: Mapping[str, Any]) -> bool:
    """Tell whether a JSON body is of this protocol: its ``inputs`` are tensors."""
    inputs = body.get("inputs")
    return isinstance(inputs, list) and any(isinstance(one, Mapping) and "datatype" in one for one in inputs)


def read_binary(request: Request, header_length: Any, served: Served) -> Asking:
    """Return the instances of a request with tensors as bytes after the JSON."""
    payload = request.row.get("body")
    if not isinstance(payload, bytes | bytearray):
        raise BadRequest("a body with binary tensors has to be sent as application/octet-stream")
    try:
        length = int(header_length)
        body = json.loads(payload[:length]) if 0 < length <= len(payload) else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, Mapping):
        raise BadRequest("Inference-Header-Content-Length is not the length of the JSON before the binary tensors")
    request = replace(request, row={"body": body})
    return read(request, body, served, memoryview(payload)[length:])


def read(request: Request, body: Mapping[str, Any], served: Served, binary: memoryview | None = None) -> Asking:
    """Return a request's instances: item i of every tensor is of instance i."""
    arrays: dict[str, np.ndarray] = {}
    for position, tensor in enumerate(body["inputs"]):
        name, array, binary = _array(tensor, position, binary)
        if name in arrays:
            raise BadRequest(f"two inputs are called {name!r}")
        arrays[name] = array
    if binary is not None and len(binary):
        raise BadRequest(f"{len(binary)} bytes of binary data belong to no input")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        told = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise BadRequest(f"the first dimensions of the inputs differ, which is that of the batch: {told}")
    (count,) = set(counts.values())
    refuse_many(count, served.max_instances)
    rows = [{name: _instance(array[index]) for name, array in arrays.items()} for index in range(count)]
    if len(arrays) == 1 and not served.named:
        rows = [next(iter(row.values())) for row in rows]
    named = {"id": body["id"]} if "id" in body else {}
    reply = partial(_reply, served=served, wanted=_wanted(body), named=named)
    return Asking([request.part(row) for row in rows], reply, many=len(rows) > 1, error_key="error")


def _reply(answers: Sequence[Any], *, served: Served, wanted: Sequence[str], named: Mapping[str, Any]) -> Reply:
    outputs = _outputs(answers, served.columns(answers))
    if unknown := [name for name in wanted if name not in outputs]:
        raise BadRequest(f"there is no output {unknown[0]!r}; there are {', '.join(outputs)}")
    model_name, version = served.served_as()
    chosen = {name: outputs[name] for name in wanted} or outputs
    return Reply.json(
        {
            "model_name": model_name,
            "model_version": version,
            **named,
            "outputs": [_tensor(name, array) for name, array in chosen.items()],
        }
    )


def _wanted(body: Mapping[str, Any]) -> list[str]:
    outputs = body.get("outputs") or []
    if not isinstance(outputs, list) or not all(isinstance(one, Mapping) and "name" in one for one in outputs):
        raise BadRequest("outputs is not an array of objects with a name")
    return [str(one["name"]) for one in outputs]


def _array(tensor: Any, position: int, binary: memoryview | None) -> tuple[str, np.ndarray, memoryview | None]:
    """Return an input's name and array, and the binary data that is left."""
    if not isinstance(tensor, Mapping):
        raise BadRequest(f"inputs[{position}] is not an object with name, shape, datatype and data")
    name, shape, datatype = (tensor.get(key) for key in ("name", "shape", "datatype"))
    where = f"input {name!r}" if isinstance(name, str) else f"inputs[{position}]"
    if not isinstance(name, str) or not name:
        raise BadRequest(f"{where} has no name")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise BadRequest(f"{where}: the shape is not an array of sizes")
    if not shape or not shape[0] or len(shape) > _MAX_RANK:
        raise BadRequest(f"{where}: the shape {shape} has no instances; its first size is that of the batch")
    if not isinstance(datatype, str) or datatype not in (*_DTYPES, _BYTES):
        raise BadRequest(f"{where}: the datatype {datatype!r} is none of {', '.join((*_DTYPES, _BYTES))}")
    count = math.prod(shape)
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, Mapping) else None
    if size is not None and "data" not in tensor:
        if binary is None or type(size) is not int or not 0 <= size <= len(binary):
            raise BadRequest(f"{where}: binary_data_size is {size!r}, which the body does not have")
        items = _from_bytes(binary[:size], datatype, where)
        binary = binary[size:]
    elif "data" in tensor:
        items = _from_json(tensor["data"], datatype, where)
    else:
        raise BadRequest(f"{where} has no data")
    if items.size != count:
        raise BadRequest(f"{where}: the shape {shape} is of {count} items, and there are {items.size}")
    return name, items.reshape(shape), binary


def _from_json(data: Any, datatype: str, where: str) -> np.ndarray:
    if not isinstance(data, list):
        raise BadRequest(f"{where}: data is not an array")
    if datatype == _BYTES:
        flat = list(_leaves(data))
        if not all(isinstance(one, str) for one in flat):
            raise BadRequest(f"{where}: data of BYTES is an array of texts")
        return _objects(flat)
    dtype = _DTYPES[datatype]
    try:
        found = np.asarray(data)
    except (ValueError, OverflowError):
        raise BadRequest(f"{where}: data is nested unevenly") from None
    allowed = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    if found.size and found.dtype.kind not in allowed:
        raise BadRequest(f"{where}: data has items that are not {datatype}")
    if found.size and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            raise BadRequest(f"{where}: data has items beyond {datatype}")
    return found.astype(dtype)


def _from_bytes(data: memoryview, datatype: str, where: str) -> np.ndarray:
    if datatype != _BYTES:
        dtype = _DTYPES[datatype]
        if len(data) % dtype.itemsize:
            raise BadRequest(f"{where}: {len(data)} bytes are no whole number of {datatype}")
        return np.frombuffer(data, dtype)
    items, place = [], 0
    while place < len(data):
        length = struct.unpack_from("<I", data, place)[0] if place + 4 <= len(data) else len(data)
        place += 4 + length
        if place > len(data):
            raise BadRequest(f"{where}: the lengths before the items do not fit the data")
        items.append(bytes(data[place - length : place]))
    return _objects(items)


def _leaves(data: list[Any]) -> Any:
    for item in data:
        if isinstance(item, list):
            yield from _leaves(item)
        else:
            yield item


def _objects(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _instance(value: Any) -> Any:
    """Return one instance of a tensor: a Python value where it is a single one."""
    if not isinstance(value, np.ndarray):
        return value.item() if isinstance(value, np.generic) else value
    # Texts are often sent with a dimension of their own: (n, 1).
    return value.item() if value.dtype == object and value.size == 1 else value


def _outputs(answers: Sequence[Any], columns: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    if columns is not None:
        return {name: _stack(column) for name, column in columns.items()}
    first = answers[0]
    if isinstance(first, Mapping) and all(isinstance(one, Mapping) and one.keys() == first.keys() for one in answers):
        return {str(key): _stack([one[key] for one in answers]) for key in first}
    return {"output": _stack(answers)}


def _stack(values: Any) -> np.ndarray:
    """Return one array of a value per instance: of numbers or texts where they are such, of JSON where not."""
    with np.errstate(all="ignore"):
        try:
            array = np.asarray(values if isinstance(values, np.ndarray) else list(values))
            if array.dtype.kind in "biuf":
                return array
            if array.dtype.kind == "U":
                return array.astype(object)
        except ValueError:
            pass  # of uneven lengths
    return _objects([one if isinstance(one, str) else Reply.json(bare(one)).body.decode() for one in values])


def _tensor(name: str, array: np.ndarray) -> dict[str, Any]:
    datatype = next((key for key, dtype in _DTYPES.items() if dtype == array.dtype), _BYTES)
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}
