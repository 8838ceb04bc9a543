"""Regions of an image, cut out for another model."""

from __future__ import annotations

import math

import numpy as np

from torchmar_handlers.images.reading import Pixels, as_array, as_image, converted


def cut(pixels: Pixels, box: np.ndarray, mode: str, square: bool, margin: float) -> Pixels:
    """Return the pixels around a box; beyond the edges of the image, its outermost pixels are repeated.

    Args:
        pixels: the image.
        box: x1 y1 x2 y2, in its pixels.
        mode: ``RGB`` or ``L``, the mode of the result.
        square: whether to widen the shorter side to the longer one, with the box in the middle.
        margin: space added on every side, as a part of the longer side.
    """
    array = as_array(pixels)
    height, width = array.shape[:2]
    # The part of a box outside of the image has no meaning, and may have any size.
    x1, x2 = np.clip(np.nan_to_num(box[[0, 2]].astype(float)), 0, width)
    y1, y2 = np.clip(np.nan_to_num(box[[1, 3]].astype(float)), 0, height)
    longer = max(x2 - x1, y2 - y1)
    add_x = add_y = margin * longer
    if square:
        add_x, add_y = add_x + (longer - (x2 - x1)) / 2, add_y + (longer - (y2 - y1)) / 2
    left, top = math.floor(x1 - add_x), math.floor(y1 - add_y)
    right, bottom = max(left + 1, math.ceil(x2 + add_x)), max(top + 1, math.ceil(y2 + add_y))
    rows = np.arange(top, bottom).clip(0, height - 1)
    columns = np.arange(left, right).clip(0, width - 1)
    region = array[rows[:, None], columns]
    return region if region.shape[2] == len(mode) else converted(as_image(region), mode)
