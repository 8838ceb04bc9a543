"""The pixels of an image file, within limits."""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from torchmar_handlers.images import jpeg
from torchmar_handlers.request import BadRequest, from_base64

if TYPE_CHECKING:
    from PIL import Image

#: A Pillow image, or bytes ``(height, width, channels)``.
Pixels: TypeAlias = "Image.Image | np.ndarray"

# Without formats that Pillow passes to other programs (EPS, to Ghostscript), and formats that no client sends.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_=\s-]*")  # characters of both alphabets
_ORIENTATION = 274  # the tag of EXIF
_LYING = (5, 6, 7, 8)  # orientations whose rows are the columns of the file
_SCALES = (8, 4, 2)  # scales at which libjpeg decodes fast, as divisors of the sides
_MARGIN = 2  # smallest sides of a file that is decoded at a scale, in multiples of the resized sides


class Reader:
    """Read images in one mode.

    Args:
        mode: ``RGB`` or ``L``.
        max_pixels: larger images are rejected before they are decoded.
        exif: whether to turn photographs by the orientation of the camera; torchvision and TorchServe do not.
        resized: function that returns width and height after the resize, for those of the file. JPEG files at least
            four times as large are decoded at a scale; None: no file is.
    """

    def __init__(
        self,
        mode: str,
        max_pixels: int,
        *,
        exif: bool = False,
        resized: Callable[[int, int], tuple[int, int]] | None = None,
    ) -> None:
        from PIL import Image

        self.mode = mode
        self._resized = resized
        self.max_pixels = max_pixels
        self.exif = exif
        # The limit of Pillow itself, also for images inside images; Pillow raises an error from twice this limit on.
        Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    def read(self, content: bytes, *, whole: bool = False) -> tuple[Pixels, tuple[int, int]]:
        """Return the pixels of a file (of an animation, those of the first frame), and width and height of the file.

        Transparency is dropped, 16 bits are cut to 8, CMYK and palettes become ``mode``. A file in base64 is decoded
        first: tensors of strings are bytes, and clients of models with ``tf.io.decode_base64`` send base64.

        Args:
            content: the file.
            whole: whether all pixels are needed, so that the file is not decoded at a scale.

        Raises:
            BadRequest: the file is no image of a known format, damaged, or has too many pixels (413).
        """
        from PIL import UnidentifiedImageError

        for file in (content, _from_base64(content)):
            try:
                return self._read(file, whole=whole)
            except UnidentifiedImageError:
                continue
        raise BadRequest("the body is not an image of a known format")

    def _read(self, content: bytes, *, whole: bool) -> tuple[Pixels, tuple[int, int]]:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                check_pixel_count(image.width, image.height, self.max_pixels)
                return self._decoded(image, content, whole=whole)
        except (BadRequest, MemoryError, UnidentifiedImageError):
            raise
        except Image.DecompressionBombError as error:
            raise BadRequest(str(error), 413) from None
        except Exception as error:  # Pillow's readers raise a dozen kinds of errors for a damaged file
            raise BadRequest(f"the image is damaged: {error}") from None

    def _decoded(self, image: Image.Image, content: bytes, *, whole: bool) -> tuple[Pixels, tuple[int, int]]:
        from PIL import ImageOps

        orientation = image.getexif().get(_ORIENTATION, 1) if self.exif else 1
        original = (image.height, image.width) if orientation in _LYING else (image.width, image.height)
        if image.format in ("JPEG", "MPO") and image.mode == self.mode == "RGB":
            scale = 1 if whole else self._scale(*original)
            width, height = (-(-side // scale) for side in (image.width, image.height))
            if orientation == 1:
                pixels = jpeg.decode(content, width, height) if scale > 1 else jpeg.decode(content)
                # Pillow has read the header: a decoder that finds another size must not be trusted.
                if pixels is not None and pixels.shape[:2] == (height, width):
                    return pixels, original
            if scale > 1:
                image.draft("RGB", (image.width // scale, image.height // scale))
        image.load()
        if orientation != 1:
            image = ImageOps.exif_transpose(image)
        return converted(image, self.mode), original

    def _scale(self, width: int, height: int) -> int:
        """Return the divisor for the sides of a JPEG when it is decoded; 1: it is decoded at full size."""
        if self._resized is None:
            return 1
        wide, high = (_MARGIN * side for side in self._resized(width, height))
        return next((scale for scale in _SCALES if width >= scale * wide and height >= scale * high), 1)


def converted(image: Image.Image, mode: str) -> Image.Image:
    """Return an image of any mode as ``RGB`` or ``L``.

    Raises:
        ValueError: its values are floating numbers, whose white is unknown.
    """
    from PIL import Image

    if image.mode == "F":
        raise ValueError("an image of floating numbers is not taken; send 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        # 16 bits: the upper eight. Some versions of Pillow cut all values above 255 to white.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)


def as_array(pixels: Pixels) -> np.ndarray:
    """Return pixels as bytes, ``(height, width, channels)``."""
    array = np.asarray(pixels)
    return array if array.ndim == 3 else array[:, :, None]


def as_image(pixels: Pixels) -> Image.Image:
    """Return pixels as an image of Pillow's."""
    from PIL import Image

    if not isinstance(pixels, np.ndarray):
        return pixels
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def size(pixels: Pixels) -> tuple[int, int]:
    """Return width and height."""
    return (pixels.shape[1], pixels.shape[0]) if isinstance(pixels, np.ndarray) else pixels.size


def check_pixel_count(width: int, height: int, limit: int) -> None:
    """Raise BadRequest (413) if an image has more pixels than are allowed."""
    if width * height > limit:
        raise BadRequest(f"the image has {width}x{height} pixels; {limit} are allowed", 413)


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _from_base64(content: bytes) -> bytes:
    """Return the file that a text in base64 encodes; empty: it is no such text."""
    try:
        return from_base64(content.decode()) if _BASE64.fullmatch(content) else b""
    except BadRequest:
        return b""
