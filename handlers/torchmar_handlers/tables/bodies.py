"""The rows in the body of a request: JSON, CSV with a header, or ``.npy``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torchmar_handlers.request import BadRequest, Request, loads
from torchmar_handlers.tables.columns import CATEGORY, Column
from torchmar_handlers.tables.table import unknown

CSV = "text/csv"

_ROWS = "rows"
_TOLD = 5
_EXPECTED = 'send a row as {"column": value} or as an array, several in an array or as {"rows": [...]}, or CSV'


def rows(request: Request, columns: Sequence[Column]) -> list[Any] | None:
    """Return the rows of a body with several; None: it is one row.

    Raises:
        BadRequest: the body is empty, or neither JSON nor CSV with these columns.
    """
    payload = request.payload
    if isinstance(payload, np.ndarray):
        if payload.ndim > 2:
            raise BadRequest(
                f"the array has the shape {list(payload.shape)}; (columns,) or (rows, columns) is expected"
            )
        return payload.tolist() if payload.ndim == 2 else None
    if isinstance(payload, bytes | bytearray | str):
        text = _text(payload)
        if request.sends(CSV) or not text.startswith(("{", "[")):
            return _csv(text, columns)
        payload = parsed(text)
    if isinstance(payload, Mapping):
        if _ROWS not in payload or any(column.name == _ROWS for column in columns):
            return None
        if not isinstance(payload[_ROWS], list):
            raise BadRequest("rows is not an array")
        values: list[Any] = payload[_ROWS]
        return values
    if isinstance(payload, list) and (not payload or any(isinstance(row, list | Mapping) for row in payload)):
        return payload
    return None


def row(request: Request) -> Any:
    """Return the only row of a request, or of one of its instances, as it was sent."""
    payload = request.payload
    if payload is None and request.whole is None:
        raise BadRequest(f"the body is empty; {_EXPECTED}")
    if isinstance(payload, np.ndarray):
        return payload.tolist()
    return parsed(_text(payload)) if isinstance(payload, bytes | bytearray | str) else payload


def _text(payload: bytes | bytearray | str) -> str:
    if not isinstance(payload, str):
        try:
            payload = bytes(payload).decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"the body is not text: byte {error.start} is {payload[error.start]:#04x}") from None
    text = payload.lstrip("\ufeff").strip()  # Excel's CSV begins with a byte order mark
    if not text:
        raise BadRequest(f"the body is empty; {_EXPECTED}")
    return text


def parsed(text: str, subject: str = "the body") -> Any:
    """Return JSON. Raises BadRequest if the text is not JSON."""
    try:
        return loads(text)
    except BadRequest as error:
        raise BadRequest(error.message.replace("the body", subject, 1)) from None


def _csv(text: str, columns: Sequence[Column]) -> list[list[Any]]:
    names = [column.name for column in columns]
    reader = csv.reader(io.StringIO(text), skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        if not set(header) & set(names):
            raise BadRequest(
                f"the body is neither JSON nor CSV: its first line, {text.splitlines()[0][:60]!r}, names no column; "
                f"{_EXPECTED} with a header such as {','.join(names[:3])}"
            )
        problems = [unknown(name, names) for name in header if name not in names]
        problems += [f"two columns of the header are called {name!r}" for name in names if header.count(name) > 1]
        if problems:
            raise BadRequest("; ".join(problems[:_TOLD]))
        lines = []
        for line in reader:
            if not line:
                continue
            if len(line) != len(header):
                raise BadRequest(
                    f"line {reader.line_num} of the CSV has {len(line)} cells; the header has {len(header)}"
                )
            lines.append(line)
    except csv.Error as error:
        raise BadRequest(f"line {reader.line_num} of the CSV is damaged: {error}") from None
    if not lines:
        raise BadRequest("the CSV has a header and no rows")
    cells = dict(zip(header, zip(*lines, strict=True), strict=True))
    missing = [None] * len(lines)
    values = [_values(column, cells[column.name]) if column.name in cells else missing for column in columns]
    return [list(row) for row in zip(*values, strict=True)]


def _values(column: Column, cells: Sequence[str]) -> Sequence[Any]:
    if column.type != CATEGORY:
        try:
            return list(map(float, cells))
        except ValueError:
            pass  # an empty cell, a boolean in words, or a mistake
    return [column.cell(cell) for cell in cells]
