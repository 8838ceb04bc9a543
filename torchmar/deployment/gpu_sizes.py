"""GPUs and sizes of memory as text: ``2x80GiB``, ``6GiB``."""

from __future__ import annotations

import re

from torchmar.errors import TorchmarError

_UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``6GiB``, ``500 MiB`` or ``80GB``.

    Raises:
        TorchmarError: ``text`` is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise TorchmarError(f'{text!r} is no size; write a number and its unit: "6GiB"')
    return int(float(match[1]) * unit)


def parse(text: str) -> tuple[int, ...]:
    """Return the bytes of each GPU of a list such as ``2x80GiB`` or ``80GiB,40GiB``.

    Raises:
        TorchmarError: ``text`` is no such list.
    """
    sizes: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)\s*[x*]\s*)?(.+)", part)
        if match is None or match[1] == "0":
            raise TorchmarError(f'{text!r} is no list of GPUs; write their number and size: "2x80GiB"')
        sizes += [parse_size(match[2])] * int(match[1] or 1)
    return tuple(sizes)


def show(size: int) -> str:
    """Return a size as text: ``79.6 GiB``."""
    return f"{size / 2**30:.1f} GiB"
