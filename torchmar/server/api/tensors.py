"""Tensors of the Open Inference Protocol between client and worker: in binary (`tensor_elements`) or in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torchmar.tensor_elements import BYTES, pack, unpack

HEADER_LENGTH = "Inference-Header-Content-Length"


class Tensor(NamedTuple):
    """A tensor with its elements in binary; ``parameters`` are those of the input or output."""

    name: str
    datatype: str
    shape: Sequence[int]
    content: bytes
    parameters: Mapping[str, Any] = {}


def in_json(tensor: Tensor) -> dict[str, Any]:
    """Return a tensor as JSON.

    Raises:
        ValueError: the bytes do not match its datatype and shape, or JSON cannot represent an element.
    """
    elements = unpack(tensor.datatype, tensor.content)
    if len(elements) != math.prod(tensor.shape):
        raise ValueError(f"the shape {list(tensor.shape)} is of {math.prod(tensor.shape)} items, not {len(elements)}")
    if tensor.datatype == BYTES:
        elements = [_text(element) for element in elements]
    elif not all(map(math.isfinite, elements)):
        raise ValueError("an element is infinite or not a number, which JSON cannot represent")
    parameters = {"parameters": dict(tensor.parameters)} if tensor.parameters else {}
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "datatype": tensor.datatype,
        **parameters,
        "data": list(elements),
    }


def of_json(document: Mapping[str, Any]) -> Tensor:
    """Return the tensor in a JSON document; an element of BYTES that is not a string is encoded as JSON.

    Raises:
        ValueError, TypeError, KeyError: the document is not a tensor.
    """
    name, datatype, shape = str(document["name"]), document["datatype"], [int(size) for size in document["shape"]]
    elements = list(leaves_of(document["data"]))
    if datatype == BYTES:
        elements = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in elements]
    return Tensor(name, datatype, shape, pack(datatype, elements))


def joined(document: Mapping[str, Any], tensors: Iterable[Tensor], key: str) -> tuple[bytes, int]:
    """Return a body with JSON followed by binary tensors, and the length of the JSON.

    Args:
        document: JSON document without its tensors.
        tensors: the inputs or outputs.
        key: ``inputs`` or ``outputs``.
    """
    described, contents = [], []
    for tensor in tensors:
        parameters = {**tensor.parameters, "binary_data_size": len(tensor.content)}
        shape = list(tensor.shape)
        described.append({"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "parameters": parameters})
        contents.append(tensor.content)
    head = json.dumps({**document, key: described}, separators=(",", ":"), ensure_ascii=False).encode()
    return b"".join([head, *contents]), len(head)


def split(body: bytes, header_length: int | None, key: str) -> tuple[dict[str, Any], list[Tensor]]:
    """Return the JSON of a body without its tensors, and the tensors.

    Args:
        body: JSON, possibly followed by binary tensors.
        header_length: length of the JSON; None: the whole body.
        key: ``inputs`` or ``outputs``.

    Raises:
        ValueError, TypeError, KeyError: the body is malformed.
    """
    document = json.loads(body if header_length is None else body[:header_length])
    tensors, offset = [], len(body) if header_length is None else header_length
    for tensor in document.pop(key):
        parameters = dict(tensor.get("parameters") or {})
        size = parameters.pop("binary_data_size", None)
        if size is None:
            tensors.append(of_json(tensor)._replace(parameters=parameters))
            continue
        content = body[offset : offset + size]
        if len(content) != size:
            raise ValueError(f"the body ends within {tensor['name']!r}")
        offset += size
        tensors.append(Tensor(str(tensor["name"]), tensor["datatype"], list(tensor["shape"]), content, parameters))
    if offset != len(body):
        raise ValueError(f"{len(body) - offset} bytes belong to no tensor")
    return document, tensors


def _text(element: bytes) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError:
        message = "an element of BYTES is not UTF-8, and this model's handler reads JSON: send it in base64"
        raise ValueError(message) from None


def leaves_of(data: Iterable[Any]) -> Iterator[Any]:
    """Yield the elements of nested lists."""
    for item in data:
        if isinstance(item, list):
            yield from leaves_of(item)
        else:
            yield item
