"""Tensors of the Open Inference Protocol as the server hands them on: their elements as bytes (`tensor_elements`)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torchmar.tensor_elements import BYTES, pack, unpack

HEADER_LENGTH = "Inference-Header-Content-Length"


class Tensor(NamedTuple):
    """A tensor with its elements as bytes; ``parameters`` are those of the input or output."""

    name: str
    datatype: str
    shape: Sequence[int]
    content: bytes
    parameters: Mapping[str, Any] = {}


def in_json(tensor: Tensor) -> dict[str, Any]:
    """Return a tensor as it stands in JSON.

    Raises:
        ValueError: the bytes are not of its datatype and shape, or JSON cannot hold an element.
    """
    elements = unpack(tensor.datatype, tensor.content)
    if len(elements) != math.prod(tensor.shape):
        raise ValueError(f"the shape {list(tensor.shape)} is of {math.prod(tensor.shape)} items, not {len(elements)}")
    if tensor.datatype == BYTES:
        elements = [_text(one) for one in elements]
    elif not all(map(math.isfinite, elements)):
        raise ValueError("an element is infinite or no number, which JSON, and so the handler, has no word for")
    given = {"parameters": dict(tensor.parameters)} if tensor.parameters else {}
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "datatype": tensor.datatype,
        **given,
        "data": list(elements),
    }


def of_json(document: Mapping[str, Any]) -> Tensor:
    """Return the tensor that stands in JSON; an element of BYTES that is no text is JSON itself.

    Raises:
        ValueError, TypeError, KeyError: it is no tensor.
    """
    name, datatype, shape = str(document["name"]), document["datatype"], [int(size) for size in document["shape"]]
    elements = list(_leaves(document["data"]))
    if datatype == BYTES:
        elements = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in elements]
    return Tensor(name, datatype, shape, pack(datatype, elements))


def joined(document: Mapping[str, Any], tensors: Iterable[Tensor], key: str) -> tuple[bytes, int]:
    """Return a body with tensors as bytes behind the JSON, and the length of that.

    Args:
        document: the JSON, without its tensors.
        tensors: inputs or outputs.
        key: ``inputs`` or ``outputs``.
    """
    described, contents = [], []
    for one in tensors:
        parameters = {**one.parameters, "binary_data_size": len(one.content)}
        tensor = {"name": one.name, "shape": list(one.shape), "datatype": one.datatype, "parameters": parameters}
        described.append(tensor)
        contents.append(one.content)
    head = json.dumps({**document, key: described}, separators=(",", ":"), ensure_ascii=False).encode()
    return b"".join([head, *contents]), len(head)


def split(body: bytes, header_length: int | None, key: str) -> tuple[dict[str, Any], list[Tensor]]:
    """Return a body's JSON without its tensors, and these.

    Args:
        body: JSON, or JSON with bytes behind it.
        header_length: the length of the JSON; None is all of the body.
        key: ``inputs`` or ``outputs``.

    Raises:
        ValueError, TypeError, KeyError: it is no such body.
    """
    document = json.loads(body if header_length is None else body[:header_length])
    tensors, place = [], len(body) if header_length is None else header_length
    for one in document.pop(key):
        parameters = dict(one.get("parameters") or {})
        size = parameters.pop("binary_data_size", None)
        if size is None:
            tensors.append(of_json(one)._replace(parameters=parameters))
            continue
        content = body[place : place + size]
        if len(content) != size:
            raise ValueError(f"the body ends within {one['name']!r}")
        place += size
        tensors.append(Tensor(str(one["name"]), one["datatype"], list(one["shape"]), content, parameters))
    if place != len(body):
        raise ValueError(f"{len(body) - place} bytes belong to no tensor")
    return document, tensors


def _text(element: bytes) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError:
        message = "an element of BYTES is not UTF-8, and this model's handler reads JSON: send it in base64"
        raise ValueError(message) from None


def _leaves(data: Iterable[Any]) -> Iterator[Any]:
    for one in data:
        if isinstance(one, list):
            yield from _leaves(one)
        else:
            yield one
