"""The page of all pictures: its type, colours, margins, heading and legend."""

from __future__ import annotations

import functools
import io
import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

INK: Colour = (32, 33, 36)
FAINT: Colour = (106, 109, 116)
LINE: Colour = (204, 206, 210)
PAPER: Colour = (255, 255, 255)
# The two ends of ColorBrewer's RdBu, which people with red-green colour blindness can distinguish.
FOR: Colour = (178, 24, 43)
AGAINST: Colour = (33, 102, 172)

MARGIN = 36  # pixels; type sizes are in pixels, too
TITLE, TEXT, NOTE = 30, 20, 17
LEGEND = 46  # height of a legend

_DPI = 200  # a page of 1000 pixels is five inches wide in print
_COMPRESSION = 4  # 60 % of the time of the default level, 6, for a heat map that is 3 % larger
_RAMP = 12  # height of a legend's colours
# Pillow's own font has little more than ASCII: other letters are taken from one of these fonts, if one is installed.
_MORE_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
)
# Letters that no font has are written in a plain form, if there is one.
_PLAIN = {"−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "x", "•": "·", "„": "“", "‚": "‘", "→": "->"}
_PLAIN |= {"ß": "ss", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ı": "i"}


class Page:
    """A white page with a title and a note; ``top`` is the beginning of its body."""

    def __init__(self, width: int, height: int, *, title: str, note: str) -> None:
        """Create a page ``width`` pixels wide with a body ``height`` pixels high."""
        self.width, self.inner = width, width - 2 * MARGIN
        lines = [(line, TITLE, INK) for line in wrapped(title, TITLE, self.inner, 2)]
        lines += [(line, NOTE, FAINT) for line in wrapped(note, NOTE, self.inner, 2)]
        heights = [round(size * 1.35) for _, size, _ in lines]
        self.top = MARGIN - 8 + sum(heights) + (20 if lines else 0)
        self.image = Image.new("RGB", (width, self.top + height + MARGIN), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        below = MARGIN - 8
        for (line, size, colour), line_height in zip(lines, heights, strict=True):
            write(self.pen, (MARGIN, below + size), line, size, colour)
            below += line_height

    def legend(self, left: int, top: int, width: int, limit: float) -> None:
        """Draw the colours from "against" to "for", which end at ``limit`` on both sides; ``LEGEND`` pixels high."""
        base = self._ramp(left, top, width, -1, ("against", number(-limit)), (number(limit), "for"))
        write(self.pen, (left + width / 2 - width_of("0", NOTE) / 2, base), "0", NOTE, FAINT)

    def scale(self, left: int, top: int, width: int, low: float, high: float) -> None:
        """Draw the colours from white to red, which represent ``low`` to ``high``; ``LEGEND`` pixels high."""
        low_text, high_text = (number(value).removeprefix("+") for value in (low, high))
        self._ramp(left, top, width, 0, ("least", low_text), (high_text, "most"))

    def _ramp(
        self, left: int, top: int, width: int, start: float, low: tuple[str, str], high: tuple[str, str]
    ) -> float:
        """Draw colours of the strengths from ``start`` to 1, with words and numbers at both ends; return the base line.

        The second text of ``low`` and the first of ``high`` are the numbers, which are omitted if there is no room for
        them.
        """
        ramp = np.broadcast_to(np.linspace(start, 1, width), (_RAMP, width))
        self.image.paste(Image.fromarray(tinted(np.full((_RAMP, width, 3), 255.0), ramp)), (left, top))
        self.pen.rectangle((left, top, left + width - 1, top + _RAMP - 1), outline=LINE)
        base = top + _RAMP + NOTE + 5
        ends = "  ".join(low), "  ".join(high)
        if width < width_of("".join(ends), NOTE) + 4 * NOTE:
            ends = low[0], high[1]
        write(self.pen, (left, base), ends[0], NOTE, FAINT)
        write(self.pen, (left + width - width_of(ends[1], NOTE), base), ends[1], NOTE, FAINT)
        return base

    def png(self) -> bytes:
        """Return the page as a file."""
        stream = io.BytesIO()
        self.image.save(stream, "PNG", dpi=(_DPI, _DPI), compress_level=_COMPRESSION)
        return stream.getvalue()


def tinted(ground: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Return colours ``(..., 3)`` of 0 to 255, tinted red if ``strength`` is positive and blue if it is negative.

    Args:
        ground: colours.
        strength: -1 to 1, of the ground's shape without its last axis; 0 does not change the ground.
    """
    colour = np.where(strength[..., None] > 0, np.array(FOR, np.float64), np.array(AGAINST, np.float64))
    # Below one, so that weak values are visible.
    alpha = np.abs(strength[..., None]) ** 0.7
    mixed: np.ndarray = (ground * (1 - alpha) + colour * alpha).astype(np.uint8)
    return mixed


def number(value: float) -> str:
    """Return a number with its sign and three digits."""
    return f"{value:+#.3g}".rstrip(".") if value else "0"


# ------------------------------------------------------------------------------------------- type


def write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, colour: Colour = INK) -> None:
    """Write one line from ``place``, the left end of its base line; a letter that no font has is a box."""
    left, base = place
    for piece, font in _pieces(text, size):
        if font is None:
            top, step = base - size * 0.68, _box(size)
            for _ in piece:
                pen.rectangle((round(left + 1), round(top), round(left + step - 2), round(base)), outline=colour)
                left += step
        else:
            pen.text((left, base), piece, colour, font, anchor="ls")
            left += font.getlength(piece)


def width_of(text: str, size: int) -> float:
    """Return the width of a line in pixels."""
    pieces = _pieces(text, size)
    return sum(len(piece) * _box(size) if font is None else font.getlength(piece) for piece, font in pieces)


def shortened(text: str, size: int, width: float) -> str:
    """Return a text that fits, with dots in place of its end if necessary."""
    text = " ".join(text.splitlines())
    if width_of(text, size) <= width:
        return text
    short, long = 0, min(len(text), math.ceil(width))  # no letter is narrower than a pixel
    while short < long:
        middle = (short + long + 1) // 2
        short, long = (middle, long) if width_of(text[:middle] + "…", size) <= width else (short, middle - 1)
    return text[:short].rstrip() + "…"


def wrapped(text: str, size: int, width: float, most: int) -> list[str]:
    """Return a text in at most ``most`` lines, broken at spaces; the last line is shortened."""
    if width_of(text, size) <= width and len(text.splitlines()) == 1:
        return [text]
    words = text.split()
    lines: list[str] = []
    while words and len(lines) < most - 1:
        count = 1
        while count < len(words) and width_of(" ".join(words[: count + 1]), size) <= width:
            count += 1
        lines.append(shortened(" ".join(words[:count]), size, width))
        words = words[count:]
    return [*lines, shortened(" ".join(words), size, width)] if words else lines


def _box(size: int) -> float:
    return size * 0.62


def _pieces(text: str, size: int) -> Iterator[tuple[str, ImageFont.FreeTypeFont | None]]:
    """Cut a line at changes of the font; None is no font at all."""
    fonts = _fonts(size)
    pending, held_index = "", -1
    # In composed form, because a letter and its accent may be from two fonts.
    for letter in unicodedata.normalize("NFC", text):
        glyph, index = _shown(letter)
        if index != held_index and pending:
            yield pending, None if held_index < 0 else fonts[held_index]
            pending = ""
        pending, held_index = pending + glyph, index
    if pending:
        yield pending, None if held_index < 0 else fonts[held_index]


@functools.lru_cache(maxsize=4096)
def _shown(letter: str) -> tuple[str, int]:
    """Return the written form of a letter and the number of its font; -1: a box."""
    if letter.isspace():
        return (" ", 0)
    fonts = _fonts(TEXT)
    for index, font in enumerate(fonts):
        if _has(font, letter):
            return letter, index
    kind = unicodedata.category(letter)
    if kind in ("Mn", "Me", "Cf"):  # combining marks and invisible characters
        return "", 0
    plain = _PLAIN.get(letter) or "".join(
        part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part)
    )
    if plain and all(_has(fonts[0], part) for part in plain):
        return plain, 0
    return letter, -1


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    # A font draws the same sign for all letters that it lacks; U+FFFF is in no font.
    return letter.isprintable() and bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))


@functools.lru_cache(maxsize=32)
def _fonts(size: int) -> Sequence[ImageFont.FreeTypeFont]:
    # A bitmap font only if Pillow was built without FreeType, unlike all of its wheels.
    fonts = [cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))]
    for name in _MORE_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return fonts
