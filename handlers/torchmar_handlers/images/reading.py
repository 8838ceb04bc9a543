"""Bytes of an image file to its pixels, within limits."""

from __future__ import annotations

import functools
import io
import re
import warnings
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from torchmar_handlers.images import jpeg
from torchmar_handlers.request import BadRequest, from_base64

if TYPE_CHECKING:
    from PIL import Image

#: A Pillow image, or bytes ``(height, width, channels)``.
Pixels: TypeAlias = "Image.Image | np.ndarray"

# Not what Pillow hands to other programs (EPS, to Ghostscript) or what no client sends.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_=\s-]*")  # of either alphabet
_ORIENTATION = 274  # the tag of EXIF


class Reader:
    """Read images in one mode.

    Args:
        mode: ``RGB`` or ``L``.
        max_pixels: larger images are rejected before they are decoded.
        exif: turn photographs as their camera was held; torchvision and TorchServe do not.
    """

    def __init__(self, mode: str, max_pixels: int, *, exif: bool = False) -> None:
        from PIL import Image

        self.mode = mode
        self.max_pixels = max_pixels
        self.exif = exif
        # What Pillow looks at itself, images within images too; it raises from twice that on.
        Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    def read(self, content: bytes) -> Pixels:
        """Return the pixels of a file, of an animation those of the first frame.

        Transparency is dropped, 16 bits are cut to 8, CMYK and palettes become ``mode``. A file in base64 is decoded
        first: tensors of strings are bytes, and clients of models with ``tf.io.decode_base64`` send such.

        Raises:
            BadRequest: the file is no image of a known format, damaged, or has too many pixels (413).
        """
        from PIL import UnidentifiedImageError

        for file in (content, _from_base64(content)):
            try:
                return self._read(file)
            except UnidentifiedImageError:
                continue
        raise BadRequest("the body is not an image of a known format")

    def _read(self, content: bytes) -> Pixels:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                check_pixel_count(image.width, image.height, self.max_pixels)
                return self._decoded(image, content)
        except (BadRequest, MemoryError, UnidentifiedImageError):
            raise
        except Image.DecompressionBombError as error:
            raise BadRequest(str(error), 413) from None
        except Exception as error:  # what a damaged file makes Pillow's readers raise is any of a dozen kinds
            raise BadRequest(f"the image is damaged: {error}") from None

    def _decoded(self, image: Image.Image, content: bytes) -> Pixels:
        from PIL import ImageOps

        turned = self.exif and image.getexif().get(_ORIENTATION, 1) != 1
        if image.format in ("JPEG", "MPO") and image.mode == self.mode == "RGB" and not turned:
            pixels = jpeg.decode(content)
            # Pillow has read the header: a decoder that sees another image is not to be believed.
            if pixels is not None and pixels.shape[:2] == (image.height, image.width):
                return pixels
        image.load()
        if turned:
            image = ImageOps.exif_transpose(image)
        return converted(image, self.mode)


def converted(image: Image.Image, mode: str) -> Image.Image:
    """Return an image of any mode as ``RGB`` or ``L``.

    Raises:
        ValueError: its values are floating numbers, whose white is unknown.
    """
    from PIL import Image

    if image.mode == "F":
        raise ValueError("an image of floating numbers is not taken; send 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        # 16 bits: the upper eight. Pillow has cut all above 255 to white in some of its versions.
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
    """Raise BadRequest (413) where an image has more pixels than are allowed."""
    if width * height > limit:
        raise BadRequest(f"the image has {width}x{height} pixels; {limit} are allowed", 413)


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _from_base64(content: bytes) -> bytes:
    """Return the file that a text in base64 stands for; empty if it is no such text."""
    try:
        return from_base64(content.decode()) if _BASE64.fullmatch(content) else b""
    except BadRequest:
        return b""
