"""Tensors of the Open Inference Protocol: NumPy arrays from JSON or bytes, and back.

https://github.com/kserve/open-inference-protocol; bytes are laid out as in Triton's binary data extension,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from torchmar_handlers.request import BadRequest

DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
BYTES, BF16 = "BYTES", "BF16"
DATATYPES = (*DTYPES, BF16, BYTES)

_BY_DTYPE = {dtype: name for name, dtype in DTYPES.items()}
_TAKEN = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}  # kinds of JSON's numbers that are accepted for another kind


def datatype(dtype: np.dtype) -> str:
    """Return the protocol's name of a dtype; types other than numbers are BYTES."""
    return _BY_DTYPE.get(dtype, BYTES)


def from_json(data: Any, datatype: str, title: str) -> np.ndarray:
    """Return elements from JSON, flat or nested; texts as objects.

    Raises:
        BadRequest: they do not have the datatype; ``title`` names the tensor.
    """
    if not isinstance(data, list):
        raise BadRequest(f"{title}: data is not an array")
    if datatype == BYTES:
        flat = list(_leaves(data))
        if not all(isinstance(text, str) for text in flat):
            raise BadRequest(f"{title}: data of BYTES is an array of texts")
        return objects(flat)
    dtype = DTYPES["FP32" if datatype == BF16 else datatype]
    try:
        array = np.asarray(data)
    except (ValueError, OverflowError):
        raise BadRequest(f"{title}: data is nested unevenly") from None
    if array.size and array.dtype.kind not in _TAKEN[dtype.kind]:
        raise BadRequest(f"{title}: data has items that are not {datatype}")
    if array.size and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise BadRequest(f"{title}: data has items beyond {datatype}")
    with np.errstate(over="ignore"):
        cast: np.ndarray = array.astype(dtype)
    if dtype.kind == "f" and array.size and not np.isfinite(cast).all() and np.isfinite(array.astype(float)).all():
        raise BadRequest(f"{title}: data has items beyond {datatype}")
    return cast


def from_bytes(data: memoryview, datatype: str, title: str) -> np.ndarray:
    """Return elements from bytes; those of BYTES as objects, BF16 as float32.

    Raises:
        BadRequest: the bytes end within an element; ``title`` names the tensor.
    """
    if datatype == BF16:
        if len(data) % 2:
            raise BadRequest(f"{title}: {len(data)} bytes are no whole number of {datatype}")
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    if datatype != BYTES:
        dtype = DTYPES[datatype]
        if len(data) % dtype.itemsize:
            raise BadRequest(f"{title}: {len(data)} bytes are no whole number of {datatype}")
        array = np.frombuffer(data, np.uint8 if datatype == "BOOL" else dtype)
        return array != 0 if datatype == "BOOL" else array
    items, place = [], 0
    while place < len(data):
        length = struct.unpack_from("<I", data, place)[0] if place + 4 <= len(data) else len(data)
        place += 4 + length
        if place > len(data):
            raise BadRequest(f"{title}: the lengths before the items do not fit the data")
        items.append(bytes(data[place - length : place]))
    return objects(items)


def to_bytes(array: np.ndarray) -> bytes | memoryview:
    """Return the elements of an array as bytes, which may share its memory; objects are texts or bytes."""
    if array.dtype != object:
        return np.ascontiguousarray(array).ravel().view(np.uint8).data
    items = (item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel())
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def objects(items: Sequence[Any]) -> np.ndarray:
    """Return a flat array of Python objects."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _leaves(data: list[Any]) -> Iterator[Any]:
    for item in data:
        if isinstance(item, list):
            yield from _leaves(item)
        else:
            yield item
