"""JPEG by libjpeg-turbo itself, if ``simplejpeg`` is installed: an array without a copy.

Pillow is built with the same library, but stores four bytes for each pixel, which are copied to
three for the resize by torch. The pixels are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np


def decode(content: bytes, width: int = 0, height: int = 0) -> np.ndarray | None:
    """Return the pixels of a JPEG in colour, ``(height, width, 3)``; None: Pillow must decode it.

    Args:
        content: the file.
        width: minimum width of the result, which the library scales down to the next larger size; 0: the original size.
        height: minimum height of the result, in the same way.
    """
    decoder = _decoder()
    if decoder is None:
        return None
    try:
        pixels: np.ndarray = decoder(content, min_width=width, min_height=height)
    except Exception:
        return None  # damaged or unusual: Pillow reads more files
    return pixels


@functools.cache
def _decoder() -> Callable[..., Any] | None:
    from PIL import features

    # Another libjpeg rounds differently, and an answer must not depend on simplejpeg.
    if not features.check_feature("libjpeg_turbo"):
        return None
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    decoder: Callable[..., Any] = decode_jpeg
    return decoder
