"""The scoring requests of ``mlflow models serve``: JSON of four formats, or CSV, as one array.

=========================================== ================================ ==============================
body                                        to the model                     ``predictions``
=========================================== ================================ ==============================
``{"dataframe_split": {columns, data}}``    float32, a row per row           ``[{"0": ..., "1": ...}]``
``{"dataframe_records": [{...}]}``          the same                         the same
CSV with a header                           the same                         the same
``{"inputs": ...}``, ``{"instances": ...}`` an array of the signature's type nested arrays
=========================================== ================================ ==============================

``inputs`` and ``instances`` with names of columns are tables, too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchmar_handlers.adapters.mlflow_signature import Column, Signature, array, number
from torchmar_handlers.request import JSON, BadRequest, loads

CSV = "text/csv"
_FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_EXPECTED = f"send an object with one of {', '.join(_FORMATS)}"


@dataclass(frozen=True)
class ModelInput:
    """The arguments for a call of the model.

    Attributes:
        values: the array.
        is_table: whether the input was sent as a table; the answer is then a table, too.
        arguments: parameters of the call.
    """

    values: np.ndarray
    is_table: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


def read(body: Any, media_type: str, signature: Signature) -> ModelInput:
    """Return the input of a request.

    Args:
        body: a text, or JSON that the server has decoded.
        media_type: its content type, without parameters.
        signature: signature of the model.

    Raises:
        BadRequest: the body has none of the formats, or does not fit the signature; 415: it is of another type.
    """
    if media_type == CSV:
        return _table(_csv(body, signature), signature, signature.arguments(None))
    if media_type != JSON:
        raise BadRequest(
            f"Content-Type {media_type or 'is missing, which'} is not supported: send {JSON} or {CSV}", 415
        )
    document = loads(body) if isinstance(body, str) else body
    if not isinstance(document, Mapping):
        raise BadRequest(f"the body is no object; {_EXPECTED}")
    formats = [name for name in _FORMATS if name in document]
    if len(formats) != 1:
        keys = ", ".join(map(str, list(document)[:8])) or "nothing"
        raise BadRequest(f"the body has {keys}; {_EXPECTED}")
    arguments, value = signature.arguments(document.get("params")), document[formats[0]]
    if formats[0] == "dataframe_split":
        return _table(_split(value, signature), signature, arguments)
    if formats[0] == "dataframe_records":
        return _table(_records(value, signature), signature, arguments)
    if formats[0] == "instances" and isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = _turned(value)
    return _named_or_plain(value, signature, arguments)


def _table(values: np.ndarray, signature: Signature, arguments: Mapping[str, Any]) -> ModelInput:
    # Data of a tensor in the signature are answered as a tensor.
    return ModelInput(values, not signature.tensors, arguments)


def _named_or_plain(value: Any, signature: Signature, arguments: Mapping[str, Any]) -> ModelInput:
    if signature.tensors:
        (tensor,) = signature.tensors
        if isinstance(value, Mapping):
            if list(value) != [tensor.name]:
                raise BadRequest(f"the input has the names {', '.join(map(str, value))}; the model takes one tensor")
            value = value[tensor.name]
        return ModelInput(tensor.array(value), False, arguments)
    if signature.columns:
        if not isinstance(value, Mapping) and len(signature.columns) == 1:
            value = {signature.columns[0].name: value}
        if not isinstance(value, Mapping):
            names = ", ".join(column.name for column in signature.columns)
            raise BadRequest(f"the columns of the input have no names; the model takes {names}")
        return ModelInput(_columns(value, signature), True, arguments)
    if isinstance(value, Mapping):
        return ModelInput(_columns(value, signature), True, arguments)
    return ModelInput(array(value), False, arguments)


def _turned(instances: Sequence[Any]) -> Mapping[str, list[Any]]:
    """Return the columns of instances that are objects."""
    if not all(isinstance(item, Mapping) and item.keys() == instances[0].keys() for item in instances):
        raise BadRequest("the instances are not objects with the same names")
    return {name: [item[name] for item in instances] for name in instances[0]}


def _columns(columns: Mapping[str, Any], signature: Signature) -> np.ndarray:
    listed = {name: value if isinstance(value, list) else [value] for name, value in columns.items()}
    if len({len(values) for values in listed.values()}) > 1:
        raise BadRequest("the columns of the input differ in length")
    rows = [list(row) for row in zip(*listed.values(), strict=True)]
    return _matrix(list(listed), rows, signature)


def _split(value: Any, signature: Signature) -> np.ndarray:
    data = value.get("data") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(data, list) or not all(isinstance(row, list) for row in data):
        raise BadRequest('dataframe_split is {"columns": [...], "data": [[...]]}')
    columns = value.get("columns")
    if columns is None:
        columns = list(range(len(data[0]) if data else 0))
    if not isinstance(columns, list) or not all(len(row) == len(columns) for row in data):
        raise BadRequest("a row of dataframe_split has another length than its columns")
    return _matrix(columns, data, signature)


def _records(value: Any, signature: Signature) -> np.ndarray:
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        raise BadRequest('dataframe_records is [{"column": value, ...}]')
    columns = list(dict.fromkeys(name for row in value for name in row))
    return _matrix(columns, [[row.get(name) for name in columns] for row in value], signature)


def _csv(text: str, signature: Signature) -> np.ndarray:
    try:
        lines = [line for line in csv.reader(io.StringIO(text), strict=True) if line]
    except csv.Error as error:
        raise BadRequest(f"the body is no CSV: {error}") from None
    if not lines:
        raise BadRequest("the CSV has no header")
    header, *rows = lines
    if any(len(row) != len(header) for row in rows):
        raise BadRequest("a row of the CSV has another length than its header")
    types = {column.name: column.type for column in signature.columns}
    return _matrix(
        header,
        [[_cell(cell, types.get(name, "")) for name, cell in zip(header, row, strict=True)] for row in rows],
        signature,
    )


def _cell(text: str, kind: str) -> Any:
    if text.strip() == "":
        return None
    if kind == "boolean" and text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _matrix(columns: Sequence[Any], rows: Sequence[Sequence[Any]], signature: Signature) -> np.ndarray:
    """Return a table as float32, with the columns of the signature in their order."""
    if len(set(map(str, columns))) < len(columns):
        raise BadRequest("the table has two columns of one name")
    if signature.tensors:
        (tensor,) = signature.tensors
        return tensor.array([[number(cell, f"row {row}") for cell in cells] for row, cells in enumerate(rows)])
    if not signature.columns:
        selected = [(index, Column(str(name), "string")) for index, name in enumerate(columns)]
    elif all(column.name for column in signature.columns):
        positions = {str(name): index for index, name in enumerate(columns)}
        if missing := [column.name for column in signature.columns if column.name not in positions]:
            raise BadRequest(f"the table lacks the columns {', '.join(missing)}")
        selected = [(positions[column.name], column) for column in signature.columns]
    else:
        if len(columns) < len(signature.columns):
            raise BadRequest(f"the table has {len(columns)} columns; {len(signature.columns)} are expected")
        selected = list(enumerate(signature.columns))
    return np.array(
        [
            [column.number(cells[index], f"row {row}, column {column.name or index}") for index, column in selected]
            for row, cells in enumerate(rows)
        ],
        dtype=np.float32,
    ).reshape(len(rows), len(selected))
