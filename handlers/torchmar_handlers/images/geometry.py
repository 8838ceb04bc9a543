"""The part of an image that a model gets, resized and cropped as in torchvision."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchmar_handlers.images.reading import Pixels, as_array, as_image, size

_WASTE = 4  # largest number of resized pixels for each kept pixel
_HANDED = 1 << 20  # largest number of pixels of a Pillow image for which a copy for torch saves time


@dataclass(frozen=True)
class Geometry:
    """``Resize(resize)``, then ``CenterCrop(crop)``, of torchvision, with bilinear filtering.

    ``resize`` is the short side, or height and width; ``crop`` is height and width; None omits a step.
    The pixels are those of torchvision with a Pillow image, except for rounding: the difference is at most one of 255
    levels.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None

    @property
    def fixed(self) -> tuple[int, int] | None:
        """Height and width of the model's image for every input; None: they depend on the image."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height before the crop, for an image with these sides."""
        if self.resize is None:
            return width, height
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        short, long = self.resize, int(self.resize * max(width, height) / min(width, height))
        return (short, long) if width <= height else (long, short)

    def apply(self, pixels: Pixels, original: tuple[int, int] | None = None) -> np.ndarray:
        """Return the pixels for the model: bytes, ``(height, width, channels)``.

        Args:
            pixels: pixels of an image.
            original: width and height of the image, if ``pixels`` were decoded at a scale.
        """
        wide, high = self.resized(*(original or size(pixels)))
        if self.crop is None:
            return _part(pixels, (wide, high), (0, 0, wide, high))
        left, right, pad_left, pad_right = _centre(wide, self.crop[1])
        top, bottom, pad_top, pad_bottom = _centre(high, self.crop[0])
        part = _part(pixels, (wide, high), (left, top, right, bottom))
        if pad_left or pad_right or pad_top or pad_bottom:
            part = np.pad(part, ((pad_top, pad_bottom), (pad_left, pad_right), (0, 0)))
        return part


def _centre(side: int, length: int) -> tuple[int, int, int, int]:
    """Return start and end of the crop of a side, and the padding before and after: CenterCrop's arithmetic."""
    if side < length:
        return 0, side, (length - side) // 2, (length - side + 1) // 2
    start = round((side - length) / 2.0)
    return start, start + length, 0, 0


def _part(pixels: Pixels, target: tuple[int, int], region: tuple[int, int, int, int]) -> np.ndarray:
    """Return ``region`` of the image resized to ``target``."""
    left, top, right, bottom = region
    width, height = size(pixels)
    if target == (width, height):
        return as_array(pixels)[top:bottom, left:right]
    rows_first = _rows_first((width, height), target)
    area = (right - left) * (bottom - top)
    cheap = isinstance(pixels, np.ndarray) or width * height <= _HANDED
    # Three channels at once, the case for which torch has vector code.
    if cheap and not rows_first and not _grey(pixels) and target[0] * target[1] <= _WASTE * area and _vectors():
        return _by_torch(as_array(pixels), target)[top:bottom, left:right]
    # Pillow computes only the region.
    from PIL import Image

    across, down = width / target[0], height / target[1]
    image, first, last = as_image(pixels), 0, height
    if _rows_first((width, height), (right - left, bottom - top)) and not rows_first:
        # Without the other rows, the order of the two steps would change; it must be that for the whole image.
        reach = max(1.0, down) + 1
        first, last = max(0, math.floor(top * down - reach)), min(height, math.ceil(bottom * down + reach))
        image = image.crop((0, first, width, last))
    box = (left * across, top * down - first, min(right * across, width), min(bottom * down, height) - first)
    return as_array(image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box))


def _rows_first(original: tuple[int, int], target: tuple[int, int]) -> bool:
    """Return whether Pillow (newer versions) resizes the rows before the columns; the order changes the rounding."""
    return original[1] - target[1] > max(0, 2 * (original[0] - target[0]))


def _by_torch(array: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    import torch

    # Pillow's arrays are not writable, and torch would warn of this; no code here writes to them.
    array = array if array.flags.writeable else array.copy()
    planes = torch.from_numpy(array).permute(2, 0, 1)[None]
    resized: Any = torch.nn.functional.interpolate(planes, target[::-1], mode="bilinear", antialias=True)
    return np.asarray(resized[0].permute(1, 2, 0).numpy())


def _grey(pixels: Pixels) -> bool:
    return pixels.shape[2] == 1 if isinstance(pixels, np.ndarray) else pixels.mode == "L"


@functools.cache
def _vectors() -> bool:
    """Return whether torch has vector code for this processor; without it, torch is slower than Pillow."""
    import torch

    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
