"""The picture of a page that was read: its lines in boxes, and beside it what they say, each in its place."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from torchmar_handlers.drawing import page

_LEAST, _MOST = 640, 1200  # pixels of the longer side
_COLOURS: Sequence[page.Colour] = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167))  # Okabe and Ito's


def draw(image: Image.Image, outlines: Sequence[np.ndarray], lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG: the page on the left, and what was read on the right.

    Args:
        image: the page, RGB.
        outlines: the four corners of each line.
        lines: with ``text`` and ``box``, in the same order.
    """
    scale = min(max(max(image.size), _LEAST), _MOST) / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    picture = Image.new("RGB", (2 * width + 1, height), page.PAPER)
    picture.paste(image.resize((width, height), Image.Resampling.BICUBIC), (0, 0))
    pen = ImageDraw.Draw(picture)
    pen.line((width, 0, width, height), fill=page.LINE)
    for index, (outline, line) in enumerate(zip(outlines, lines, strict=True)):
        colour = _COLOURS[index % len(_COLOURS)]
        corners = [(float(x) * scale, float(y) * scale) for x, y in outline]
        pen.line([*corners, corners[0]], fill=colour, width=2)
        left, top, right, bottom = (value * scale for value in line["box"])
        # As large as in the page, unless the text would be wider than there.
        size = max(8, round((bottom - top) * 0.7))
        if (wide := page.width_of(line["text"], size)) > right - left > 0:
            size = max(8, int(size * (right - left) / wide))
        place = width + 1 + left, (top + bottom) / 2 + size * 0.35
        page.write(pen, place, line["text"], size, page.INK)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
