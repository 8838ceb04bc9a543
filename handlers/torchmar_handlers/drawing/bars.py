"""The picture of a table row's attribution: a bar for each feature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchmar_handlers.drawing import page

_WIDTH = 1040
_ROW, _BAR = 38, 24  # heights
_MOST = 15  # largest number of bars
_LABELS = 400  # width of names with their values
_VALUE = 150  # largest width of a value in it
_GAP = 10


def draw(
    features: Sequence[tuple[str, str, float]],
    *,
    title: str,
    note: str,
    ends: tuple[str, str] = ("against", "for"),
) -> bytes:
    """Return a PNG: the 15 strongest features, red to the right for the target and blue to the left against it.

    Args:
        features: name, shown value (empty: none), and attribution of each feature. Features beyond 15 are one bar,
            the sum of all others. Values that are not finite count as 0.
        title: subject of the explanation.
        note: method of the explanation.
        ends: meanings of blue and red.
    """
    rows = [(name, value_text, float(np.nan_to_num(value, posinf=0, neginf=0))) for name, value_text, value in features]
    rows.sort(key=lambda row: -abs(row[2]))
    rest = rows[_MOST:]
    if rest:
        rows = [*rows[:_MOST], (f"{len(rest)} others", "", sum(value for _, _, value in rest))]
    sheet = page.Page(_WIDTH, max(len(rows), 1) * _ROW + page.LEGEND, title=title, note=note)
    left, right = page.MARGIN + _LABELS + 2 * _GAP, _WIDTH - page.MARGIN
    values = [value for _, _, value in rows]
    lowest, highest = min([0.0, *values]), max([0.0, *values])
    numbers = max((page.width_of(page.number(value), page.NOTE) for value in values), default=0) + _GAP
    # Numbers are written beyond the ends of their bars.
    first = left + (numbers if lowest < 0 else 0)
    scale = (right - first - (numbers if highest > 0 else 0)) / (highest - lowest or 1.0)
    zero = round(first - lowest * scale)
    bottom = sheet.top + max(len(rows), 1) * _ROW
    for place, row in enumerate(rows):
        top = sheet.top + place * _ROW
        if place:
            sheet.pen.line((page.MARGIN, top, right, top), fill=(238, 239, 241))
        _label(sheet, top, *row[:2], is_rest=bool(rest) and place == _MOST)
        _bar(sheet, top, zero, row[2], scale, is_rest=bool(rest) and place == _MOST)
    if not rows:
        page.write(sheet.pen, (page.MARGIN, sheet.top + page.TEXT), "(no features)", page.TEXT, page.FAINT)
    sheet.pen.line((zero, sheet.top, zero, bottom + 6), fill=page.FAINT)
    page.write(sheet.pen, (zero - page.width_of("0", page.NOTE) / 2, bottom + 26), "0", page.NOTE, page.FAINT)
    _key(sheet, bottom + 26, ends)
    return sheet.png()


def _label(sheet: page.Page, top: int, name: str, value_text: str, *, is_rest: bool) -> None:
    base, right = top + 26, page.MARGIN + _LABELS
    if value_text:
        value = page.shortened(f"= {value_text}", page.NOTE, _VALUE)
        right -= round(page.width_of(value, page.NOTE))
        page.write(sheet.pen, (right, base), value, page.NOTE, page.FAINT)
        right -= 6
    name = page.shortened(name, page.TEXT, right - page.MARGIN)
    colour = page.FAINT if is_rest else page.INK
    page.write(sheet.pen, (right - page.width_of(name, page.TEXT), base), name, page.TEXT, colour)


def _bar(sheet: page.Page, top: int, zero: int, value: float, scale: float, *, is_rest: bool) -> None:
    end = round(zero + value * scale)
    colour = page.FOR if value > 0 else page.AGAINST
    above = top + (_ROW - _BAR) // 2
    if end != zero:
        edges = (min(zero, end), above, max(zero, end), above + _BAR)
        # The sum of several features is no feature: its bar is hollow.
        sheet.pen.rectangle(edges, fill=page.PAPER if is_rest else colour, outline=colour, width=2)
    document = page.number(value)
    place = end - page.width_of(document, page.NOTE) - _GAP + 2 if value < 0 else end + _GAP - 1
    page.write(sheet.pen, (place, top + 25), document, page.NOTE, page.INK)


def _key(sheet: page.Page, base: int, ends: tuple[str, str]) -> None:
    """Draw the meaning of the two colours at the bottom."""
    left = float(page.MARGIN)
    for colour, document in zip((page.AGAINST, page.FOR), ends, strict=True):
        sheet.pen.rectangle((left, base - 12, left + 12, base), fill=colour)
        page.write(sheet.pen, (left + 20, base), document, page.NOTE, page.FAINT)
        left += 20 + page.width_of(document, page.NOTE) + 24
