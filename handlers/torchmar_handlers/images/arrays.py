"""Images that are sent as numbers: pixels, which are prepared like those of a file, or the model's input."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchmar_handlers.images.reading import Pixels, as_image, check_pixel_count, converted
from torchmar_handlers.request import BadRequest


def is_array(payload: Any) -> bool:
    """Return whether a payload is an image in numbers: an array of NumPy's, or nested lists."""
    return isinstance(payload, list | np.ndarray)


def read(
    payload: Any, mode: str, max_pixels: int, sides: tuple[int, int] | None = None
) -> tuple[Pixels | None, np.ndarray | None]:
    """Return either pixels or the model's input, float32 ``(channels, height, width)``; the other is None.

    Bytes (``uint8``) are pixels, channels last or first. With the channels last, whole numbers from 0 to 255 (bytes in
    JSON) and floats from 0 to 1 (shares of 255, which clients of TensorFlow models send) are pixels, too.
    Any other numbers with the channels first are the model's input, resized and normalised by the client, as
    TorchServe's own handlers accept it.

    Args:
        payload: an array, or nested lists.
        mode: ``RGB`` or ``L``; for ``L`` the dimension of the channels may be missing.
        max_pixels: larger images are rejected.
        sides: height and width of the model's input, for messages; None if they differ.

    Raises:
        BadRequest: the payload is none of these, or has too many pixels (413).
    """
    array = _array(payload)
    channels = len(mode)
    if array.ndim == 2 and channels == 1:
        # For a grey image, only the type distinguishes pixels and inputs.
        array = array[:, :, None] if array.dtype == np.uint8 else array[None]
    first = array.ndim == 3 and array.shape[0] == channels
    last = array.ndim == 3 and array.shape[2] in (1, 3, 4) and not first
    if not (first or last) or not array.size:
        height_width = "height, width" if sides is None else "{}, {}".format(*sides)
        raise BadRequest(
            f"an array of the shape {list(array.shape)} is no image: pixels are (height, width, {channels}), "
            f"an input of the model is ({channels}, {height_width})"
        )
    height, width = array.shape[1:] if first else array.shape[:2]
    check_pixel_count(width, height, max_pixels)
    if array.dtype == np.uint8:
        return _pixels(array.transpose(1, 2, 0) if first else array, mode), None
    if first:
        with np.errstate(over="ignore"):
            values = array.astype(np.float32)
        if not np.isfinite(values).all():
            raise BadRequest("the array has values that are not finite")
        return None, values
    if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
        return _pixels(np.rint(array * 255).astype(np.uint8), mode), None
    with np.errstate(invalid="ignore"):
        pixels = array.astype(np.uint8, casting="unsafe")
    if not (pixels == array).all():
        raise BadRequest(
            "an array with the channels last has pixels, which are whole numbers from 0 to 255 or floats from 0 to 1"
        )
    return _pixels(pixels, mode), None


def _array(payload: Any) -> np.ndarray:
    try:
        array = np.asarray(payload)
    except (ValueError, OverflowError):
        raise BadRequest("the rows of the array are not of one length") from None
    if array.dtype.kind not in "uif":
        content = "booleans" if array.dtype.kind == "b" else "other values"
        raise BadRequest(f"an image in JSON is nested lists of numbers, as many in each row, and this has {content}")
    return array


def _pixels(array: np.ndarray, mode: str) -> Pixels:
    """Return pixels with one, three or four channels in the given mode."""
    if array.shape[2] == len(mode):
        return np.ascontiguousarray(array)
    return converted(as_image(np.ascontiguousarray(array)), mode)
