"""The options of a handler: the ``handler`` section of an archive's configuration, read with types and limits."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_MISSING = object()


class OptionError(ValueError):
    """An option is wrong; the model does not load with it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"model-config.yaml: handler.{name}: {problem}")


class Options(Mapping[str, Any]):
    """A mapping that records the keys that were read, so that a misspelt key is found."""

    def __init__(self, values: Any = None) -> None:
        if values is not None and not isinstance(values, Mapping):
            raise ValueError("model-config.yaml: handler: a mapping of options is expected")
        self._values = {str(key): value for key, value in (values or {}).items()}
        self._read_names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._read_names.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def integer(self, name: str, default: int, *, low: int = 0, high: int | None = None) -> int:
        """Return a whole number from ``low`` to ``high``."""
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise OptionError(name, f"{value!r} is not a whole number")
        return int(self._within(name, value, low, high))

    def number(self, name: str, default: float, *, low: float | None = None, high: float | None = None) -> float:
        """Return a number from ``low`` to ``high``."""
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise OptionError(name, f"{value!r} is not a number")
        return float(self._within(name, value, low, high))

    def numbers(self, name: str, default: Sequence[float], *, count: int | None = None) -> list[float]:
        """Return a list of numbers, of the length ``count`` if it is given."""
        value = self._given(name, default)
        plain = isinstance(value, list | tuple) and all(type(item) in (int, float) for item in value)
        if not plain or (count is not None and len(value) != count):
            expected = "a list of numbers" if count is None else f"a list of {count} numbers"
            raise OptionError(name, f"{value!r} is not {expected}")
        return [float(item) for item in value]

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self._given(name, default)
        if not isinstance(value, bool):
            raise OptionError(name, f"{value!r} is neither true nor false")
        return value

    def text(self, name: str, default: str, *, choices: Sequence[str] = ()) -> str:
        """Return a text, one of ``choices`` if they are given."""
        value = self._given(name, default)
        if not isinstance(value, str):
            raise OptionError(name, f"{value!r} is not a text")
        if choices and value not in choices:
            raise OptionError(name, f"{value!r} is none of {', '.join(choices)}")
        return value

    def reject_unknown(self) -> None:
        """Raise OptionError if there is a key that was not read."""
        for name in self._values:
            if name not in self._read_names:
                close = difflib.get_close_matches(name, self._read_names, n=1)
                hint = (
                    f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(self._read_names))}"
                )
                raise OptionError(name, f"no option is called so{hint}")

    def _given(self, name: str, default: Any) -> Any:
        value = self.get(name, _MISSING)
        return default if value is _MISSING or value is None else value

    def _within(self, name: str, value: float, low: float | None, high: float | None) -> float:
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = (
                f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
            )
            raise OptionError(name, f"{value} is not {bounds}")
        return value
