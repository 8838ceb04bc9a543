"""A table: the rows that clients send, as numbers for the model."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from torchmar_handlers.request import BadRequest
from torchmar_handlers.tables.columns import BOOLEAN, CATEGORY, INTEGER, ONE_HOT, OUT_OF_RANGE, Column, Unusable

_TOLD = 5  # problems of a row in a message
_LISTED = 12  # names of columns in a message


class Table:
    """Columns, in their order; the values of a row are a number for each, ``(columns,)`` float64.

    Args:
        columns: columns of the table, at least one.
        out_of_range: treatment of numbers outside of a column's range: ``refuse``, ``clip`` or ``allow``.
    """

    def __init__(self, columns: Sequence[Column], out_of_range: str = OUT_OF_RANGE[0]) -> None:
        self.columns = list(columns)
        self.out_of_range = out_of_range
        self.names = [column.name for column in columns]
        self.width = sum(column.width for column in columns)
        self._by_name = {column.name: column for column in columns}
        self._coded = [
            (position, {category: float(index) for index, category in enumerate(column.categories)})
            for position, column in enumerate(columns)
            if column.type == CATEGORY
        ]
        self._booleans = [position for position, column in enumerate(columns) if column.type == BOOLEAN]
        self._whole = [position for position, column in enumerate(columns) if column.type == INTEGER]
        self._low = np.array([0.0 if column.type == BOOLEAN else column.low for column in columns])
        self._high = np.array([1.0 if column.type == BOOLEAN else column.high for column in columns])
        scaled = [column.std is not None for column in columns]
        self._shift = np.array(
            [column.typical if scale else 0.0 for column, scale in zip(columns, scaled, strict=True)]
        )
        self._scale = np.array([column.std or 1.0 for column in columns])
        #: The index of the first of the model's inputs for each column.
        self.starts = np.cumsum([0, *(column.width for column in columns)])[:-1]
        one_hot = [column.type == CATEGORY and column.encoding == ONE_HOT for column in columns]
        self._one_hot, self._single = np.flatnonzero(one_hot), np.flatnonzero(np.logical_not(one_hot))
        self._one_hot_starts, self._single_starts = self.starts[self._one_hot], self.starts[self._single]

    def values(self, row: Any, extra_keys: Collection[str] = ()) -> np.ndarray:
        """Return the values of one row, ``(columns,)`` float64.

        Args:
            row: ``{column: value}``, or a list in the order of the columns.
            extra_keys: keys of an object that are no columns and may be present.

        Raises:
            BadRequest: the row is wrong; the message has all of its problems, five at most.
        """
        quick = self._quick(row)
        if quick is None and isinstance(row, Mapping):
            row = _unwrapped(row, self._by_name)
            quick = self._quick(row)
        return self._examined(row, extra_keys) if quick is None else quick

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return rows of values, ``(n, columns)``, as the model's input, ``(n, width)`` float32.

        Columns with a ``std`` are standardised, categories are one number each, or one-hot.
        """
        scaled: np.ndarray = (values - self._shift) / self._scale
        if self.width == len(self.columns):
            return scaled.astype(np.float32)
        encoded = np.zeros((len(values), self.width), np.float32)
        encoded[:, self._single_starts] = scaled[:, self._single]
        categories = values[:, self._one_hot].astype(np.int64)
        encoded[np.arange(len(values))[:, None], self._one_hot_starts + categories] = 1
        return encoded

    def typical(self) -> np.ndarray:
        """Return the average row as the model's input, ``(width,)`` float32: means, shares of categories."""
        row: np.ndarray = self.encode(np.array([[column.typical for column in self.columns]]))[0]
        for column, start in zip(self.columns, self.starts, strict=True):
            if column.type == CATEGORY and column.encoding == ONE_HOT:
                row[start : start + column.width] = column.shares
        return row

    def by_column(self, numbers: np.ndarray) -> np.ndarray:
        """Return the sums of the numbers of each column: ``(n, width)`` to ``(n, columns)``."""
        sums: np.ndarray = np.add.reduceat(numbers, self.starts, axis=1)
        return sums

    def _quick(self, row: Any) -> np.ndarray | None:
        """Return the values of a valid row; None: the row needs the slower checks."""
        if not isinstance(row, list | Mapping) or len(row) != len(self.names):
            return None
        try:
            cells = [row[name] for name in self.names] if isinstance(row, Mapping) else list(row)
        except KeyError:
            return None
        kinds = [type(cell) for cell in cells]
        try:
            for position, codes in self._coded:
                if kinds[position] is bool:
                    return None
                cells[position], kinds[position] = codes[cells[position]], float
            for position in self._booleans:
                if kinds[position] is bool:
                    kinds[position] = int
            if not set(kinds) <= {int, float}:
                return None
            values = np.array(cells, np.float64)
        except (KeyError, TypeError, OverflowError):
            return None
        in_range = (values >= self._low) & (values <= self._high)  # false for NaN
        if not in_range.all():
            return None
        for position in self._whole:
            if values[position] % 1:
                return None
        for position in self._booleans:
            if values[position] not in (0, 1):
                return None
        return values

    def _examined(self, row: Any, extra_keys: Collection[str]) -> np.ndarray:
        problems = []
        if isinstance(row, Mapping):
            others = [str(name) for name in row if name not in self._by_name and name not in extra_keys]
            problems += [unknown(name, self.names) for name in others]
            cells: Iterator[Any] = (row.get(name) for name in self.names)
        elif isinstance(row, list):
            if len(row) != len(self.names):
                raise BadRequest(
                    f"the row has {_plural(len(row), 'value')}; "
                    f"{len(self.names)} are expected, in this order: {_listed(self.names)}"
                )
            cells = iter(row)
        else:
            text = "null" if row is None else f"{row!r:.40}"
            raise BadRequest(
                f"a row is an object {{column: value}} or an array of {_plural(len(self.names), 'value')}, not {text}"
            )
        values = []
        for column, cell in zip(self.columns, cells, strict=True):
            try:
                values.append(column.value(cell, self.out_of_range))
            except Unusable as problem:
                problems.append(str(problem))
        if problems:
            more = f"; and {_plural(len(problems) - _TOLD, 'more problem')}" if len(problems) > _TOLD else ""
            raise BadRequest("; ".join(problems[:_TOLD]) + more)
        return np.array(values)


def unknown(name: str, names: Sequence[str]) -> str:
    """Return the message about an unknown column, with the name that was probably meant."""
    close = difflib.get_close_matches(name.lower(), [column.lower() for column in names], 1)
    suggestion = next((column for column in names if close and column.lower() == close[0]), None)
    hint = f"did you mean {suggestion!r}?" if suggestion else f"there are {_listed(names)}"
    return f"there is no column {name[:60]!r} ({hint})"


def _unwrapped(row: Mapping[str, Any], columns: Mapping[str, Column]) -> Any:
    """Return the row in an object: itself, unless it is one tensor of all columns in their order."""
    if len(row) == 1:
        ((name, only),) = row.items()
        of_all = isinstance(only, np.ndarray) or (isinstance(only, list) and len(only) == len(columns))
        if name not in columns and of_all:
            return only.ravel().tolist() if isinstance(only, np.ndarray) else only
    row = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}
    # A tensor of the shape (n, 1) has one value in an inner array for each row.
    return {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in row.items()}


def shown(column: Column, value: float) -> Any:
    """Return a value in the form of clients: a category by its name, a whole number without a fraction."""
    if column.type == CATEGORY:
        return column.categories[int(value)]
    if column.type == BOOLEAN:
        return bool(value)
    return int(value) if column.type == INTEGER else float(f"{value:.7g}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
