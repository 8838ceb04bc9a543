"""JPEG by libjpeg-turbo itself, where ``simplejpeg`` is installed: an array without a copy.

Pillow is built with the same library, but keeps four bytes for each pixel, which are copied to
three for the resize by torch. The pixels are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np


def decode(content: bytes, width: int = 0, height: int = 0) -> np.ndarray | None:
    """Return the pixels of a JPEG in colour, ``(height, width, 3)``; None where that is left to Pillow.

    Args:
        content: the file.
        width: of the result at least, which is scaled down by the library to the next larger size; 0: as it is.
        height: likewise.
    """
    decoder = _decoder()
    if decoder is None:
        return None
    try:
        pixels: np.ndarray = decoder(content, min_width=width, min_height=height)
    except Exception:
        return None  # damaged, or strange: Pillow knows what to make of it
    return pixels


@functools.cache
def _decoder() -> Callable[..., Any] | None:
    from PIL import features

    # Another libjpeg rounds in another way: with or without simplejpeg, an answer is to be the same.
    if not features.check_feature("libjpeg_turbo"):
        return None
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    decoder: Callable[..., Any] = decode_jpeg
    return decoder
