"""A model's input for a request, by the options of a handler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from torchmar_handlers.common.options import OptionError, Options
from torchmar_handlers.images import arrays
from torchmar_handlers.images.geometry import Geometry
from torchmar_handlers.images.reading import Pixels, Reader, check_pixel_count, size
from torchmar_handlers.request import FILE_KEYS, BadRequest, Request

_SIDE = 224  # pixels
_MAX_PIXELS = 89_478_485  # Pillow's own limit: 256 MiB of RGB
_IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_NOTHING = object()  # the option is not set, which is different from null


@dataclass(frozen=True)
class Input:
    """One image: ``values`` is bytes, or floats from the client, ``(channels, height, width)``.

    ``width`` and ``height`` are those of the original image.
    """

    values: torch.Tensor
    width: int
    height: int


class Inputs:
    """Make inputs from requests, and batches from inputs.

    =============== =========================== =============================================================
    option          default                     meaning
    =============== =========================== =============================================================
    mode            RGB                         what the model takes: ``RGB`` or ``L``
    resize          256                         pixels of the short side, or ``[height, width]``, or null
    crop            224; none if ``resize`` is  pixels of a square from the middle, or ``[height, width]``,
                    null or ``[height, width]`` or null
    mean, std       ImageNet's; 0 and 1 for L   what values from 0 to 1 are normalised with
    max_pixels      89478485 (Pillow's limit)   larger images get 413
    exif            false                       turn photographs as their camera was held
    scaled_decoding false                       decode JPEG files whose sides are at least four times those after
                                                ``resize`` at a half, a quarter or an eighth of their sides
    =============== =========================== =============================================================

    Args:
        options: options of the handler.
        device: device of the batches.
        resize: default of the option ``resize``.
        normalised: whether the default mean and std are ImageNet's.

    Raises:
        OptionError: an option has an invalid value.
    """

    def __init__(
        self, options: Options, device: torch.device, *, resize: int | None = 256, normalised: bool = True
    ) -> None:
        self.mode = options.text("mode", "RGB", choices=("RGB", "L"))
        channels = len(self.mode)
        resize_option = options.get("resize", _NOTHING)
        side = _sides("resize", resize if resize_option is _NOTHING else resize_option)
        crop = _sides("crop", options.get("crop", 224 if isinstance(side, int) else None))
        self.geometry = Geometry(side, (crop, crop) if isinstance(crop, int) else crop)
        mean, std = _IMAGENET if normalised and channels == 3 else ([0.0] * channels, [1.0] * channels)
        self._mean = torch.tensor(options.numbers("mean", mean, count=channels), device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(options.numbers("std", std, count=channels), device=device).view(1, -1, 1, 1)
        if bool((self._std == 0).any()):
            raise OptionError("std", "nothing can be divided by 0")
        self._plain = not bool(self._mean.any()) and bool((self._std == 1).all())
        self.max_pixels = options.integer("max_pixels", _MAX_PIXELS, low=1)
        exif, scaled = options.flag("exif", False), options.flag("scaled_decoding", False)
        resized = self.geometry.resized if scaled and self.geometry.resize is not None else None
        self._reader = Reader(self.mode, self.max_pixels, exif=exif, resized=resized)

    def read(self, request: Request) -> Input:
        """Return the input in a request: a file, pixels as numbers, or the model's input.

        Raises:
            BadRequest: the request has no image, or an image with too many pixels (413).
        """
        pixels, values, original = self._opened(request)
        if pixels is not None:
            return self.fit(pixels, original)
        assert values is not None
        return Input(torch.from_numpy(values), values.shape[2], values.shape[1])

    def typical(self) -> Input:
        """Return a black image of the fixed size of the geometry, or of 224 pixels if there is none."""
        side = self.geometry.resize if isinstance(self.geometry.resize, int) else _SIDE
        height, width = self.geometry.fixed or (side, side)
        return self.fit(np.zeros((height, width, len(self.mode)), np.uint8))

    def pixels(self, request: Request) -> Pixels:
        """Return the original pixels of a request.

        Raises:
            BadRequest: the request has no image, or an image with too many pixels (413).
        """
        pixels, _, _ = self._opened(request, whole=True)
        if pixels is None:
            raise BadRequest(
                f"an image is taken as a file or as bytes (height, width, {len(self.mode)}), not as floats"
            )
        return pixels

    def fit(self, pixels: Pixels, original: tuple[int, int] | None = None) -> Input:
        """Return the input for pixels of the right mode.

        Args:
            pixels: pixels of an image.
            original: width and height of the image, if ``pixels`` were decoded at a scale.

        Raises:
            BadRequest: the input would have too many pixels (413).
        """
        width, height = original or size(pixels)
        if self.geometry.crop is None:
            check_pixel_count(*self.geometry.resized(width, height), self.max_pixels)
        array = self.geometry.apply(pixels, (width, height))
        return Input(torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C")), width, height)

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Return a batch of bytes as the model's input, float32 of the same shape; floats unchanged.

        The same operations, in the same order, as torchvision's: the same floats.
        """
        if batch.dtype != torch.uint8:
            return batch
        values = batch.float().div_(255)
        return values if self._plain else values.sub_(self._mean).div_(self._std)

    def restore(self, batch: torch.Tensor) -> np.ndarray:
        """Return the pixels of a normalised batch: bytes, of the same shape."""
        values = batch.float() * self._std + self._mean
        return np.asarray((values * 255).round_().clamp_(0, 255).byte().cpu().numpy())

    def _opened(
        self, request: Request, *, whole: bool = False
    ) -> tuple[Pixels | None, np.ndarray | None, tuple[int, int] | None]:
        """Return either pixels or the model's input, the other is None; and width and height of a file."""
        payload = request.value(FILE_KEYS)
        if arrays.is_array(payload):
            return *arrays.read(payload, self.mode, self.max_pixels, self.geometry.fixed), None
        pixels, original = self._reader.read(request.content(), whole=whole)
        return pixels, None, original


def _sides(name: str, value: Any) -> Any:
    """Return a number of pixels, (height, width) or None."""

    def side(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1 << 16

    if value is None or side(value):
        return value
    if isinstance(value, list | tuple) and len(value) == 2 and all(map(side, value)):
        return tuple(value)
    raise OptionError(name, f"{value!r} is neither a number of pixels nor [height, width] nor null")
