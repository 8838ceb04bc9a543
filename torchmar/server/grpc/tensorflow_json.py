"""The conversion of tensors to the JSON of TensorFlow Serving's REST API, and of a handler's JSON to tensors.

https://github.com/tensorflow/serving/blob/master/tensorflow_serving/g3doc/api_rest.md, "Encoding binary values"
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torchmar.server.api.tensorflow_serving import is_number
from torchmar.server.api.tensors import Tensor, leaves_of
from torchmar.tensor_elements import BYTES, pack, unpack


def nested(tensor: Tensor) -> Any:
    """Return the elements of a tensor as nested lists; a string is text, or ``{"b64": ...}`` if it is not UTF-8.

    Strings of an input whose name ends in ``_bytes`` are always in base64.

    Raises:
        ValueError: the bytes do not match its datatype and shape.
    """
    elements: Sequence[Any] = unpack(tensor.datatype, tensor.content)
    if tensor.datatype == BYTES:
        elements = [_string(element, always_encoded=tensor.name.endswith("_bytes")) for element in elements]
    return _shaped(list(elements), list(tensor.shape))


def plain(value: Any) -> Any:
    """Return features of examples as JSON values; bytes as strings in `nested`."""
    if isinstance(value, bytes):
        return _string(value, always_encoded=False)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def outputs(document: Any) -> dict[str, Tensor]:
    """Return the tensors in a handler's answer, by name.

    ``{"outputs": {name: column}}`` contains the columns; ``{"predictions": rows}`` contains rows, which become columns
    if they are objects with the same keys; anything else is one output, ``outputs``. Numbers with a fraction are FP32,
    others INT64; text is BYTES, and other values are BYTES that contain JSON.

    Raises:
        ValueError: a column is empty.
    """
    if isinstance(document, Mapping) and isinstance(columns := document.get("outputs"), Mapping):
        return {str(name): _tensor(str(name), column) for name, column in columns.items()}
    rows = document
    if isinstance(document, Mapping):
        rows = document.get("predictions", document.get("outputs", document))
    if (
        isinstance(rows, list)
        and rows
        and all(isinstance(row, Mapping) and row.keys() == rows[0].keys() for row in rows)
    ):
        return {str(name): _tensor(str(name), [row[name] for row in rows]) for name in rows[0]}
    return {"outputs": _tensor("outputs", rows if isinstance(rows, list) else [rows])}


def _tensor(name: str, column: Any) -> Tensor:
    values = column if isinstance(column, list) else [column]
    shape = _shape(values)
    leaves = list(leaves_of(values)) if shape is not None else []
    if shape is not None and all(isinstance(leaf, bool) for leaf in leaves):
        return Tensor(name, "BOOL", shape, pack("BOOL", leaves))
    if shape is not None and all(is_number(leaf) for leaf in leaves):
        kind = "INT64" if all(isinstance(leaf, int) for leaf in leaves) else "FP32"
        return Tensor(name, kind, shape, pack(kind, leaves))
    if shape is not None and all(isinstance(leaf, str) for leaf in leaves):
        return Tensor(name, BYTES, shape, pack(BYTES, leaves))
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    return Tensor(name, BYTES, [len(texts)], pack(BYTES, texts))


def _shape(values: Any) -> list[int] | None:
    """Return the shape of nested lists; None if they are uneven or contain other values."""
    if not isinstance(values, list):
        return [] if isinstance(values, bool | int | float | str) else None
    shapes = [_shape(value) for value in values]
    if any(shape is None or shape != shapes[0] for shape in shapes):
        return None
    return [len(values), *(shapes[0] or [] if shapes else [])]


def _shaped(elements: list[Any], shape: Sequence[int]) -> Any:
    if len(shape) <= 1:
        return elements if shape else elements[0]
    size = len(elements) // shape[0] if shape[0] else 0
    return [_shaped(elements[place * size : (place + 1) * size], shape[1:]) for place in range(shape[0])]


def _string(value: bytes, *, always_encoded: bool) -> Any:
    if not always_encoded:
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return {"b64": base64.b64encode(value).decode()}
