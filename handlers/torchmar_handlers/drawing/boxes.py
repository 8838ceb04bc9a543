"""The picture of an image's objects: boxes with labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from torchmar_handlers.drawing import page

_LEAST, _MOST = 720, 1600  # pixels of the longer side
_PAD = 4
# Okabe and Ito's colours, without black: distinct without red-green sight, and on most backgrounds.
_COLOURS: tuple[page.Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


@dataclass(frozen=True)
class Box:
    """One object: its ``corners`` x1 y1 x2 y2 in pixels of the image, the number of its class, and its label."""

    corners: Sequence[float]
    kind: int
    label: str


def draw(image: np.ndarray, boxes: Sequence[Box]) -> bytes:
    """Return a PNG of the image with boxes, each with its label on a tag of its class's colour.

    Small images are enlarged, so that the tags do not hide them, and huge images are reduced.

    Args:
        image: bytes, ``(channels, height, width)`` with 1 or 3 channels.
        boxes: the most important first, which is drawn on top.
    """
    pixels = np.moveaxis(np.asarray(image, np.uint8), 0, -1)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    longer = max(picture.size)
    scale = min(max(longer, _LEAST), _MOST) / longer
    if scale != 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    drawn = [_drawn(box, scale, picture.size) for box in reversed(boxes)]
    for corners, colour, _ in drawn:
        pen.rectangle(corners, outline=colour, width=3)
    # Tags after all boxes: no line crosses a word.
    for corners, colour, label in drawn:
        _tag(pen, corners, colour, label, picture.size)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _drawn(box: Box, scale: float, size: tuple[int, int]) -> tuple[tuple[int, int, int, int], page.Colour, str]:
    limits = np.array([*size, *size]) - 1
    x1, y1, x2, y2 = np.clip(np.round(np.nan_to_num(np.array(box.corners, np.float64)) * scale), 0, limits).astype(int)
    corners = int(min(x1, x2)), int(min(y1, y2)), int(max(x1, x2)), int(max(y1, y2))
    return corners, _COLOURS[box.kind % len(_COLOURS)], box.label


def _tag(
    pen: ImageDraw.ImageDraw,
    corners: tuple[int, int, int, int],
    colour: page.Colour,
    label: str,
    size: tuple[int, int],
) -> None:
    """Write a label above a box, or inside it if there is no room above."""
    label = page.shortened(label, page.NOTE, size[0] - 2 * _PAD)
    wide, high = round(page.width_of(label, page.NOTE)) + 2 * _PAD, page.NOTE + 2 * _PAD
    left = max(0, min(corners[0], size[0] - wide))
    top = corners[1] - high + 1 if corners[1] >= high else corners[1]
    pen.rectangle((left, top, left + wide, top + high - 1), fill=colour)
    # Luma by ITU-R BT.601.
    bright = (299 * colour[0] + 587 * colour[1] + 114 * colour[2]) / 1000 > 120
    page.write(pen, (left + _PAD, top + high - 1 - _PAD - 2), label, page.NOTE, page.INK if bright else page.PAPER)
