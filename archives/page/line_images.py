"""The images that the two models see: a page within limits, and lines cut out of it, upright and of one height."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from text_regions import Region

_MULTIPLE = 32  # what the sides of a page are rounded to
_HEIGHT = 48  # of a line
_STEP = 160  # widths of lines are filled up to a multiple of it
_LEAST, _MOST = 320, 3200  # pixels: widths of lines


def page(image: Image.Image, min_side: int, max_side: int) -> Image.Image:
    """Return a page whose shorter side has ``min_side`` pixels or more and whose longer one ``max_side`` or less."""
    scale = max(1.0, min_side / min(image.size))
    scale = min(scale, max_side / max(image.size))
    width, height = (max(_MULTIPLE, round(side * scale / _MULTIPLE) * _MULTIPLE) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def values(image: Image.Image) -> np.ndarray:
    """Return an RGB image as both models take it: ``(3, height, width)``, blue first, from -1 to 1."""
    array = np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1)
    return np.ascontiguousarray(array) / 127.5 - 1


def line(image: Image.Image, region: Region) -> np.ndarray:
    """Return a line, cut out and turned upright: ``(3, 48, width)``, filled up with zeros on the right.

    The width depends on the line alone, so that what is read does not depend on the lines beside it in a batch.
    """
    wide, high = (max(1.0, side) for side in region.size)
    corners = region.corners
    if high >= 1.5 * wide:  # written from top to bottom: turned, as the model has learned such lines
        corners, wide, high = np.roll(corners, -1, axis=0), high, wide
    width = min(_MOST, max(1, math.ceil(_HEIGHT * wide / high)))
    # Cut out at its own size, then resized: reducing in one step would skip pixels.
    own = (max(1, round(wide)), max(1, round(high)))
    quad = corners[[0, 3, 2, 1]].ravel().tolist()  # from the top left, against the clock
    cut = image.transform(own, Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    array = values(cut.resize((width, _HEIGHT), Image.Resampling.BILINEAR))
    filled = np.zeros((3, _HEIGHT, max(_LEAST, -(-width // _STEP) * _STEP)), np.float32)
    filled[:, :, :width] = array
    return filled
