"""The names of a TensorFlow Lite model's signature, which OpenVINO does not read.

The file is a FlatBuffer (https://flatbuffers.dev/internals); the field numbers are those of TensorFlow's
``lite/schema/schema.fbs``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_SUBGRAPHS, _SIGNATURES = 2, 7  # fields of Model
_TENSORS = 0  # field of SubGraph
_NAME = 3  # field of Tensor
_INPUTS, _OUTPUTS, _KEY, _SUBGRAPH = 0, 1, 2, 4  # fields of SignatureDef
_MAP_NAME, _MAP_TENSOR = 0, 1  # fields of TensorMap


class _Table:
    """A table of a FlatBuffer."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, _uint32(data, 0))

    def number(self, field: int) -> int:
        """Return a field of 32 bits; 0 if it is missing."""
        place = self._place(field)
        return _uint32(self._data, place) if place else 0

    def text(self, field: int) -> str:
        """Return a field of text; empty if it is missing."""
        place = self._place(field)
        if not place:
            return ""
        start = place + _uint32(self._data, place)
        return self._data[start + 4 : start + 4 + _uint32(self._data, start)].decode("utf-8", "replace")

    def tables(self, field: int) -> Iterator[_Table]:
        """Yield the tables of a vector."""
        place = self._place(field)
        if not place:
            return
        start = place + _uint32(self._data, place)
        for element in range(start + 4, start + 4 + 4 * _uint32(self._data, start), 4):
            yield _Table(self._data, element + _uint32(self._data, element))

    def _place(self, field: int) -> int:
        offsets = self._at - struct.unpack_from("<i", self._data, self._at)[0]
        size = struct.unpack_from("<H", self._data, offsets)[0]
        entry = 4 + 2 * field
        offset = struct.unpack_from("<H", self._data, offsets + entry)[0] if entry < size else 0
        return self._at + offset if offset else 0


def names(file: Path) -> dict[str, str]:
    """Return the names of the default signature's inputs and outputs, by the names of their tensors.

    A file without signatures, or a damaged one, has none: OpenVINO then uses the tensors' names, or reports the error.
    """
    data = file.read_bytes()
    try:
        model = _Table.root(data)
        signatures = list(model.tables(_SIGNATURES))
        default = next((table for table in signatures if table.text(_KEY) == "serving_default"), None) or signatures[0]
        graph = list(model.tables(_SUBGRAPHS))[default.number(_SUBGRAPH)]
        tensors = [tensor.text(_NAME) for tensor in graph.tables(_TENSORS)]
        maps = [*default.tables(_INPUTS), *default.tables(_OUTPUTS)]
        return {tensors[table.number(_MAP_TENSOR)]: table.text(_MAP_NAME) for table in maps}
    except (struct.error, IndexError):
        return {}


def _uint32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])
