"""The axes of charts: round ticks, and the conversion of values to positions on an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchmar.load.numbers import number


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: the quantity with its unit.
        log: whether equal distances are equal factors; values up to 0 are then not drawn.
        low: first value; default: from the marks (0 for a vertical axis that is not logarithmic).
        high: last value; default: from the marks.
        ticks: value and text of each tick; default: round numbers.
    """

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    ticks: Sequence[tuple[float, str]] | None = None


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` multiples of 1, 2 or 5 times a power of ten, from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten between two values above 0, with their doubles and quintuples if there are few."""
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades <= 2.5 else (1, 3) if decades <= 4 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [round(factor * 10.0**exponent, 12) for exponent in exponents for factor in factors]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


class Scale:
    """The conversion of values to shares of an axis' length."""

    def __init__(self, axis: Axis, values: Iterable[float], margin: float, from_zero: bool = False) -> None:
        usable = [value for value in values if math.isfinite(value) and (value > 0 or not axis.log)] or [1.0]
        low, high = _bounds(axis, usable, margin, from_zero=from_zero)
        self._log = axis.log
        self._low, self._high = (math.log(low), math.log(high)) if axis.log else (low, high)
        self.start = low
        values = log_ticks(low, high) if axis.log else linear_ticks(low, high)
        self.ticks = list(axis.ticks) if axis.ticks is not None else [(value, number(value)) for value in values]

    def share(self, value: float) -> float:
        """Return 0 for the first and 1 for the last value of the axis; other values are moved to its ends."""
        if self._log:
            value = math.log(value) if value > 0 else -math.inf
        return min(1.0, max(0.0, (value - self._low) / (self._high - self._low)))


def _bounds(axis: Axis, usable: Sequence[float], margin: float, *, from_zero: bool) -> tuple[float, float]:
    """Return the first and the last value of an axis: its own, or those of the marks with a margin.

    Args:
        axis: the axis.
        usable: values of the marks that the axis can have, at least one.
        margin: share of the length that is added at an end that the axis does not fix.
        from_zero: whether an axis that is not logarithmic begins at 0, if it does not fix its first value.
    """
    low = axis.low
    if low is None or (axis.log and low <= 0):
        low = 0.0 if from_zero and not axis.log else min(usable)
    high = max(usable) if axis.high is None else axis.high
    if not high > low:
        return (low / 2, low * 2) if axis.log else (low if from_zero else low - 0.5, low + 1)
    widens_low, widens_high = axis.low is None, axis.high is None
    if axis.log:
        factor = (high / low) ** margin
        return low / factor if widens_low else low, high * factor if widens_high else high
    length = (high - low) * margin
    return low - length if widens_low and not from_zero else low, high + length if widens_high else high
