"""Tensor elements in the raw contents of the Open Inference Protocol, in row-major order.

Elements are little-endian. Four bytes with the length precede each element of BYTES, as in Triton's binary data
extension: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

# Codes of struct by datatype; BF16 is the upper half of an FP32.
LETTERS = {
    "BOOL": "?",
    **dict(zip(("INT8", "INT16", "INT32", "INT64"), "bhiq", strict=True)),
    **dict(zip(("UINT8", "UINT16", "UINT32", "UINT64"), "BHIQ", strict=True)),
    **dict(zip(("FP16", "FP32", "FP64"), "efd", strict=True)),
}
BYTES, BF16 = "BYTES", "BF16"


def pack(datatype: str, elements: Sequence[Any]) -> bytes:
    """Return elements as bytes; the elements of BYTES are bytes or texts.

    Raises:
        ValueError: the datatype is unknown, or cannot represent an element.
    """
    if datatype == BYTES:
        items = (element.encode() if isinstance(element, str) else element for element in elements)
        return b"".join(struct.pack("<I", len(item)) + item for item in items)
    try:
        return struct.pack(f"<{len(elements)}{_letter(datatype)}", *elements)
    except (struct.error, OverflowError) as error:
        raise ValueError(str(error)) from None


def unpack(datatype: str, content: bytes) -> Sequence[Any]:
    """Return the elements in a sequence of bytes; those of BYTES as bytes.

    Raises:
        ValueError: the datatype is unknown, or the bytes end within an element.
    """
    if datatype == BYTES:
        return list(_items(content))
    if datatype == BF16:
        halves = struct.unpack(f"<{len(content) // 2}H", content[: len(content) // 2 * 2])
        _check_size(datatype, content, 2)
        return struct.unpack(f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(half << 16 for half in halves)))
    letter = _letter(datatype)
    size = struct.calcsize(letter)
    _check_size(datatype, content, size)
    return struct.unpack(f"<{len(content) // size}{letter}", content)


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
