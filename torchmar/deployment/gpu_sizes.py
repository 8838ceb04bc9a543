"""GPUs as text, by their memory: ``2x80GiB``."""

from __future__ import annotations

import re

from torchmar import byte_sizes
from torchmar.errors import TorchmarError


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
        try:
            size = byte_sizes.parse(match[2], unit_required=True)
        except ValueError as error:
            raise TorchmarError(f"{match[2]!r} is {error}") from None
        sizes += [size] * int(match[1] or 1)
    return tuple(sizes)


def show(size: int) -> str:
    """Return a size as text: ``79.6 GiB``."""
    return f"{size / 2**30:.1f} GiB"
