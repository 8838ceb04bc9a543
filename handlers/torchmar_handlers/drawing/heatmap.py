"""The picture of an image's attribution: the image beside its heat map."""

from __future__ import annotations

import numpy as np
from PIL import Image

from torchmar_handlers.drawing import page

_SIDE = 480  # pixels of a panel's longer side; a wide image's panel, with the heat map below it, is twice as wide
_LEAST = 24  # smallest length of its shorter side
_LEGEND = 300  # smallest width of the legend


def draw(image: np.ndarray, attributions: np.ndarray, *, title: str, note: str, signed: bool = True) -> bytes:
    """Return a PNG: the input, and on its grey copy red for the target and blue against it.

    Args:
        image: bytes, ``(channels, height, width)`` with 1 or 3 channels.
        attributions: floats, ``(channels, height, width)``, with the channels of the image or one channel; the channels
            are summed. Colours end at the 99th percentile of the absolute values, so that one pixel does not make
            the rest pale. Values that are not finite count as 0.
        title: subject of the explanation.
        note: method of the explanation.
        signed: False for values that are neither for nor against the target: red is from the smallest to the largest.
    """
    pixels = np.moveaxis(np.asarray(image, np.uint8), 0, -1)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3]).convert("RGB")
    values = np.nan_to_num(np.asarray(attributions, np.float64), posinf=0, neginf=0).sum(0)
    low = 0.0 if signed else float(values.min())
    sizes = np.abs(values - low)
    limit = float(np.percentile(sizes, 99)) or float(sizes.max()) or 1.0

    is_wide = picture.width > 2 * picture.height
    scale = _SIDE * (2 if is_wide else 1) / max(picture.size)
    width, height = (max(_LEAST, round(side * scale)) for side in picture.size)
    # Small inputs keep their pixels visible: smoothing would show detail that does not exist.
    smooth = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.BICUBIC
    enlarged = picture.resize((width, height), smooth)
    strength = Image.fromarray(np.clip((values - low) / limit, -1, 1).astype(np.float32)).resize(
        (width, height), smooth
    )
    # On white, so that both colours are visible on any input.
    shadow = 235 - np.asarray(enlarged.convert("L"), np.float64)[:, :, None] * (110 / 255)
    coloured = Image.fromarray(page.tinted(shadow.repeat(3, 2), np.clip(np.asarray(strength), -1, 1)))

    across, down = (0, height + page.MARGIN) if is_wide else (width + page.MARGIN, 0)
    least = max(_LEGEND, 2 * _SIDE if is_wide else _SIDE)
    sheet = page.Page(
        max(across + width, least) + 2 * page.MARGIN,
        down + height + 16 + page.LEGEND,
        title=title,
        note=note,
    )
    for panel, left, top in ((enlarged, 0, 0), (coloured, across, down)):
        corner = page.MARGIN + left, sheet.top + top
        sheet.image.paste(panel, corner)
        edges = (corner[0] - 1, corner[1] - 1, corner[0] + width, corner[1] + height)
        sheet.pen.rectangle(edges, outline=page.LINE)
    legend = max(width, _LEGEND)
    left = max(page.MARGIN, page.MARGIN + across + width - legend)
    below = sheet.top + down + height + 16
    if signed:
        sheet.legend(left, below, legend, limit)
    else:
        sheet.scale(left, below, legend, low, low + limit)
    return sheet.png()
