"""The columns of a table, as the configuration specifies them."""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchmar_handlers.common.options import OptionError

NUMBER, INTEGER, CATEGORY, BOOLEAN = "number", "integer", "category", "boolean"
TYPES = (NUMBER, INTEGER, CATEGORY, BOOLEAN)
ONE_HOT, INDEX = "one_hot", "index"
OUT_OF_RANGE = ("refuse", "clip", "allow")

_LARGEST = sys.float_info.max
_SHOWN = 40  # characters of a value in a message
_LISTED = 12  # categories in a message
_OF_NUMBERS = frozenset({"name", "type", "unit", "default", "min", "max", "mean", "std"})
_KEYS = {
    NUMBER: _OF_NUMBERS,
    INTEGER: _OF_NUMBERS,
    BOOLEAN: _OF_NUMBERS - {"unit", "min", "max"},
    CATEGORY: frozenset({"name", "type", "default", "categories", "encoding", "frequencies"}),
}


class Unusable(ValueError):
    """A value that a column does not accept; the text names the value, and the accepted ones."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column; its values are numbers: the index of a category, 0 or 1 for a boolean.

    ``low`` and ``high`` are in the column's own unit, and so are ``mean`` and ``std``. If ``std`` is
    given, the model gets ``(value - mean) / std``; a mean alone is for the comparisons of explanations.
    ``shares`` are the shares of the categories, for the same purpose. ``default`` is a number; None
    means that the column is required.
    """

    name: str
    type: str = NUMBER
    unit: str = ""
    low: float = -_LARGEST
    high: float = _LARGEST
    default: float | None = None
    mean: float | None = None
    std: float | None = None
    categories: tuple[str | int, ...] = ()
    encoding: str = ONE_HOT
    shares: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """The number of the model's inputs for this column."""
        return len(self.categories) if self.type == CATEGORY and self.encoding == ONE_HOT else 1

    @property
    def datatype(self) -> str:
        """The datatype of the column in the Open Inference Protocol; categories of both kinds are texts."""
        if self.type == CATEGORY:
            return "INT64" if all(isinstance(category, int) for category in self.categories) else "BYTES"
        return {INTEGER: "INT64", BOOLEAN: "BOOL"}.get(self.type, "FP64")

    @property
    def typical(self) -> float:
        """The value for the comparisons of explanations: the mean, else the default, else 0."""
        return self.mean if self.mean is not None else self.default if self.default is not None else 0.0

    @property
    def allowed(self) -> str:
        """The accepted values of the column, in words."""
        if self.type == CATEGORY:
            names = [_shown(name) for name in self.categories[:_LISTED]]
            more = f" and {len(self.categories) - _LISTED} more" if len(self.categories) > _LISTED else ""
            return f"one of {', '.join(names)}{more}"
        if self.type == BOOLEAN:
            return "true or false"
        description = "a whole number" if self.type == INTEGER else "a number"
        low, high = (f"{limit:.15g}" for limit in (self.low, self.high))
        if self.low > -_LARGEST:
            description += f" from {low} to {high}" if self.high < _LARGEST else f" of at least {low}"
        elif self.high < _LARGEST:
            description += f" of at most {high}"
        return f"{description} {self.unit}".rstrip()

    def value(self, cell: Any, out_of_range: str = OUT_OF_RANGE[0]) -> float:
        """Return the JSON value of a cell as a number; None as the default.

        Args:
            cell: a JSON value, or the text of bytes.
            out_of_range: ``refuse``, ``clip`` to the nearest allowed value, or ``allow``.

        Raises:
            Unusable: the column does not accept the value.
        """
        if isinstance(cell, bytes | bytearray):
            cell = cell.decode("utf-8", "replace")
        if cell is None:
            if self.default is None:
                raise Unusable(f"column {self.name!r} is missing; {self.allowed} is expected")
            return self.default
        value = self._value(cell, out_of_range)
        if value is None:
            if isinstance(cell, list):
                shape = _shape(cell)
                raise Unusable(f"column {self.name!r} has the shape {shape} in one row; {self.allowed} is expected")
            close = difflib.get_close_matches(cell, map(str, self.categories), 1) if isinstance(cell, str) else []
            suggestion = f" (did you mean {close[0]!r}?)" if close and close[0] in self.categories else ""
            raise Unusable(f"column {self.name!r} is {_shown(cell)}; {self.allowed} is allowed{suggestion}")
        return value

    def cell(self, text: str) -> Any:
        """Return the value for the text of a cell; the text itself if it has no such value."""
        text = text.strip()
        if not text:
            return None
        if self.type == CATEGORY:
            return next((category for category in self.categories if str(category) == text), text)
        if self.type == BOOLEAN:
            return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)
        try:
            return float(text)
        except ValueError:
            return text

    def _value(self, cell: Any, out_of_range: str) -> float | None:
        if self.type == CATEGORY:
            # In Python, True and 1.0 equal 1; only 1.0 may be in a table.
            may_be_category = isinstance(cell, str | int | float) and not isinstance(cell, bool)
            return float(self.categories.index(cell)) if may_be_category and cell in self.categories else None
        if self.type == BOOLEAN:
            return float(cell) if isinstance(cell, bool | int | float) and cell in (0, 1) else None
        if isinstance(cell, bool) or not isinstance(cell, int | float):
            return None
        try:
            value = float(cell)
        except OverflowError:  # an integer of more than 308 digits
            return None
        if not math.isfinite(value) or (self.type == INTEGER and not value.is_integer()):
            return None
        if out_of_range == "clip":
            return min(max(value, self.low), self.high)
        return value if out_of_range == "allow" or self.low <= value <= self.high else None


def read(specification: Any, folder: Path) -> list[Column]:
    """Return the columns that the option ``columns`` specifies.

    Args:
        specification: a list of objects with ``name`` and further keys, or the name of a
            JSON file with that list in ``folder``.
        folder: the extracted archive.

    Raises:
        OptionError: it specifies no column, or an invalid one.
    """
    source = ""
    if isinstance(specification, str):
        source = f"{specification}: "
        try:
            specification = json.loads((folder / specification).read_bytes())
        except OSError:
            raise OptionError(
                "columns", f"there is no file {specification} in the archive; name it under files: in the recipe"
            ) from None
        except ValueError as error:
            raise OptionError("columns", f"{source}not JSON: {error}") from None
    if not isinstance(specification, list) or not specification:
        raise OptionError("columns", f"{source}a list of columns is expected, or the name of a JSON file with one")
    columns: dict[str, Column] = {}
    for position, entry in enumerate(specification):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"]:
            raise OptionError("columns", f"{source}item {position} is not an object with a name")
        if entry["name"] in columns:
            raise OptionError("columns", f"{source}two columns are called {entry['name']!r}")
        try:
            columns[entry["name"]] = _column(entry)
        except ValueError as error:
            raise OptionError("columns", f"{source}column {entry['name']!r}: {error}") from None
    return list(columns.values())


def _column(definition: Mapping[str, Any]) -> Column:
    type_ = definition.get("type", NUMBER)
    if type_ not in TYPES:
        raise ValueError(f"type is {type_!r}; there are {', '.join(TYPES)}")
    for key in definition:
        if key not in _KEYS[type_]:
            close = difflib.get_close_matches(str(key), _KEYS[type_], 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(_KEYS[type_]))}"
            raise ValueError(f"a {type_} has no {key!r}{hint}")
    low, high = _number(definition, "min", -_LARGEST), _number(definition, "max", _LARGEST)
    mean, std = (_number(definition, key) if key in definition else None for key in ("mean", "std"))
    if low > high:
        raise ValueError(f"min ({low:.15g}) is more than max ({high:.15g})")
    if std is not None and (std <= 0 or mean is None):
        raise ValueError("std is not positive" if mean is not None else "std needs a mean beside it")
    encoding = definition.get("encoding", ONE_HOT)
    if encoding not in (ONE_HOT, INDEX):
        raise ValueError(f"encoding is {encoding!r}; there are {ONE_HOT}, {INDEX}")
    categories, shares = _categories(definition) if type_ == CATEGORY else ((), ())
    column = Column(
        name=definition["name"],
        type=type_,
        unit=str(definition.get("unit", "")),
        low=low,
        high=high,
        mean=mean,
        std=std,
        categories=categories,
        encoding=encoding,
        shares=shares,
    )
    if definition.get("default") is None:
        return column
    try:
        default = column.value(definition["default"])
    except Unusable:
        raise ValueError(f"default is {_shown(definition['default'])}; {column.allowed} is allowed") from None
    return Column(**{**column.__dict__, "default": default})


def _categories(definition: Mapping[str, Any]) -> tuple[tuple[str | int, ...], tuple[float, ...]]:
    """Return the categories of a column and the share of each."""
    names = definition.get("categories")
    plain = isinstance(names, list) and all(type(name) in (str, int) for name in names)
    if not plain or not names or len({str(name) for name in names}) != len(names):
        raise ValueError("categories is not a list of different texts or whole numbers")
    shares = definition.get("frequencies") or [1] * len(names)
    if not isinstance(shares, list) or not all(type(share) in (int, float) and share >= 0 for share in shares):
        raise ValueError("frequencies is not a list of shares")
    if len(shares) != len(names) or not sum(shares):
        raise ValueError(f"there are {len(shares)} frequencies of {len(names)} categories")
    return tuple(names), tuple(share / sum(shares) for share in shares)


def _number(definition: Mapping[str, Any], key: str, default: float = 0.0) -> float:
    value = definition.get(key, default)
    if value is None:
        return default
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{key} is {_shown(value)}, not a number")
    return float(value)


def _shape(value: Any) -> list[int]:
    """Return the shape of nested lists, by the first element of each."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _shown(value: Any) -> str:
    """Return a value for a message: as JSON, of limited length."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
