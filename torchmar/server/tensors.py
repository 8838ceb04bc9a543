"""Tensors of the Open Inference Protocol as the server hands them on: their elements as bytes, row by row.

Little-endian; before each element of BYTES stand four bytes with its length, as in Triton's binary data extension:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# By datatype, as struct has them; BF16 is the upper half of an FP32.
LETTERS = {
    "BOOL": "?",
    **dict(zip(("INT8", "INT16", "INT32", "INT64"), "bhiq", strict=True)),
    **dict(zip(("UINT8", "UINT16", "UINT32", "UINT64"), "BHIQ", strict=True)),
    **dict(zip(("FP16", "FP32", "FP64"), "efd", strict=True)),
}
BYTES, BF16 = "BYTES", "BF16"
HEADER_LENGTH = "Inference-Header-Content-Length"


class Tensor(NamedTuple):
    """A tensor with its elements as bytes; ``parameters`` are those of the input or output."""

    name: str
    datatype: str
    shape: Sequence[int]
    content: bytes
    parameters: Mapping[str, Any] = {}


def pack(datatype: str, elements: Sequence[Any]) -> bytes:
    """Return elements as bytes; those of BYTES are bytes or texts.

    Raises:
        ValueError: the datatype is none, or does not hold an element.
    """
    if datatype == BYTES:
        items = (one.encode() if isinstance(one, str) else one for one in elements)
        return b"".join(struct.pack("<I", len(item)) + item for item in items)
    try:
        return struct.pack(f"<{len(elements)}{_letter(datatype)}", *elements)
    except (struct.error, OverflowError) as error:
        raise ValueError(str(error)) from None


def unpack(datatype: str, content: bytes) -> Sequence[Any]:
    """Return the elements that stand in bytes; those of BYTES as bytes.

    Raises:
        ValueError: the datatype is none, or the bytes do not end with an element.
    """
    if datatype == BYTES:
        return list(_items(content))
    if datatype == BF16:
        halves = struct.unpack(f"<{len(content) // 2}H", content[: len(content) // 2 * 2])
        _check_size(datatype, content, 2)
        return struct.unpack(f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(one << 16 for one in halves)))
    letter = _letter(datatype)
    size = struct.calcsize(letter)
    _check_size(datatype, content, size)
    return struct.unpack(f"<{len(content) // size}{letter}", content)


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
    found, place = [], len(body) if header_length is None else header_length
    for one in document.pop(key):
        parameters = dict(one.get("parameters") or {})
        size = parameters.pop("binary_data_size", None)
        if size is None:
            found.append(of_json(one)._replace(parameters=parameters))
            continue
        content = body[place : place + size]
        if len(content) != size:
            raise ValueError(f"the body ends within {one['name']!r}")
        place += size
        found.append(Tensor(str(one["name"]), one["datatype"], list(one["shape"]), content, parameters))
    if place != len(body):
        raise ValueError(f"{len(body) - place} bytes belong to no tensor")
    return document, found


def _letter(datatype: str) -> str:
    if datatype not in LETTERS:
        raise ValueError(f"the datatype {datatype!r} is none of {', '.join((*LETTERS, BF16, BYTES))}")
    return LETTERS[datatype]


def _check_size(datatype: str, content: bytes, size: int) -> None:
    if len(content) % size:
        raise ValueError(f"{len(content)} bytes are no whole number of {datatype}")


def _items(content: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(content):
        if place + 4 > len(content):
            raise ValueError("the bytes end within the length of an element")
        (length,) = struct.unpack_from("<I", content, place)
        place += 4 + length
        if place > len(content):
            raise ValueError("the bytes end within an element")
        yield content[place - length : place]


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
