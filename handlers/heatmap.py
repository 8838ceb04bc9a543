"""The picture of an attribution: the image beside the image with its heat map over it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PANEL = 320  # pixels of a panel's longer side
_MARGIN = 24
_HEADER, _FOOTER = 64, 56
_INK, _FAINT, _PAPER = (32, 33, 36), (110, 113, 120), (255, 255, 255)
_FOR = np.array([178, 24, 43], np.float32)  # the two ends of ColorBrewer's RdBu,
_AGAINST = np.array([33, 102, 172], np.float32)  # which readers without red-green sight tell apart


def draw(image: np.ndarray, attributions: np.ndarray, *, title: str, note: str) -> bytes:
    """Return a PNG: the input, and over its grey shadow red for and blue against the class.

    Args:
        image: bytes, ``(channels, height, width)`` with 1 or 3 channels.
        attributions: floats of the same shape; the channels are summed. Colours end at the
            99th percentile of the absolute values, so that one pixel does not bleach the rest.
        title: what was explained.
        note: how.
    """
    pixels = np.moveaxis(image, 0, -1)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    values = attributions.sum(0).astype(np.float32)
    limit = float(np.percentile(np.abs(values), 99)) or float(np.abs(values).max()) or 1.0
    scale = _PANEL / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    # Small inputs keep their pixels visible: smoothing would show detail that is not there.
    smooth = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.BICUBIC
    shown = picture.resize(size, smooth)
    strength = np.asarray(Image.fromarray(np.clip(values / limit, -1, 1)).resize(size, smooth))
    strength = np.clip(strength, -1, 1)

    width = 2 * size[0] + 3 * _MARGIN
    page = Image.new("RGB", (width, size[1] + _HEADER + _FOOTER), _PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((_MARGIN, 14), title, _INK, ImageFont.load_default(22))
    pen.text((_MARGIN, 42), note, _FAINT, ImageFont.load_default(13))
    page.paste(shown, (_MARGIN, _HEADER))
    page.paste(_overlay(shown, strength), (2 * _MARGIN + size[0], _HEADER))
    for left in (_MARGIN, 2 * _MARGIN + size[0]):
        pen.rectangle((left - 1, _HEADER - 1, left + size[0], _HEADER + size[1]), outline=(200, 202, 206))
    _legend(page, 2 * _MARGIN + size[0], _HEADER + size[1] + 14, size[0])
    stream = io.BytesIO()
    page.save(stream, "PNG", optimize=False)
    return stream.getvalue()


def _overlay(shown: Image.Image, strength: np.ndarray) -> Image.Image:
    grey = np.asarray(shown.convert("L"), np.float32)[:, :, None]
    shadow = 235 - grey * (110 / 255)  # light, so that both colours stand out on any input
    colour = np.where(strength[:, :, None] > 0, _FOR, _AGAINST)
    alpha = np.abs(strength)[:, :, None] ** 0.7
    return Image.fromarray((shadow * (1 - alpha) + colour * alpha).astype(np.uint8))


def _legend(page: Image.Image, left: int, top: int, width: int) -> None:
    ramp = np.broadcast_to(np.linspace(-1, 1, width, dtype=np.float32), (8, width))
    page.paste(_overlay(Image.new("L", (width, 8), 0), ramp), (left, top))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    pen.text((left, top + 13), "against", _FAINT, font)
    pen.text((left + width, top + 13), "for", _FAINT, font, anchor="ra")
