"""Sizes in bytes in the notation of users: ``8GiB``, ``512 MiB``, ``2GB``, ``1048576``."""

from __future__ import annotations

import re

_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_UNITS = {"b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}


def parse(text: str, *, unit_required: bool = False) -> int:
    """Return the bytes of a size: a number, and a unit from B to TB or TiB, in small or capital letters.

    Args:
        text: the size.
        unit_required: whether a number without a unit, which means bytes, is an error.

    Raises:
        ValueError: the text is no size above 0; the message shows a correct size, and does not repeat the text.

    Examples:
        >>> parse("1.5 GiB"), parse("2GB"), parse("1048576")
        (1610612736, 2000000000, 1048576)
    """
    match = _SIZE.fullmatch(text)
    unit = (match[2].lower() or ("" if unit_required else "b")) if match else ""
    size = int(float(match[1]) * _UNITS[unit]) if match and unit in _UNITS else 0
    if not size:
        raise ValueError("no size; write a number and its unit: 8GiB, 512MiB or 2GB")
    return size
