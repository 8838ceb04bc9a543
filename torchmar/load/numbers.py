"""Numbers in a form for people."""

from __future__ import annotations

import math


def number(value: float, fixed: bool = False) -> str:
    """Return a number with three significant digits, whole from 100, with separators from 1,000.

    Args:
        value: the number.
        fixed: whether to keep trailing zeros, so that the numbers of a column have equal precision.
    """
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else "-"
    if not value:
        return "0"
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:,.0f}"
    digits = 1 if magnitude >= 9.995 else 2 if magnitude >= 0.9995 else 3
    text = f"{value:.{digits}f}" if magnitude >= 0.001 else f"{value:.1e}"
    return text if fixed or "e" in text else text.rstrip("0").rstrip(".")
