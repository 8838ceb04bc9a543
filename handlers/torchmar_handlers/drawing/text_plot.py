"""The picture of a text's attribution: the text, its tokens coloured."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from torchmar_handlers.drawing import page

_WIDTH = 1040
_LINE = 34  # height of a line
_MOST_LINES = 40
_MOST_LETTERS = 10_000  # letters in these lines, even if all are as narrow as "i"
_PAD = 2  # distance between a token's letters and its edges
_LEGEND = 340
_BREAKS = re.compile(r"\r\n?|\n|[^\S\r\n]+|\S+")
_DARK = 150  # the brightness of a background below which its letters are white


@dataclass
class _Piece:
    """A part of a line: characters of one token, or of none (-1)."""

    token: int
    text: str
    left: float
    right: float


def draw(text: str, spans: Sequence[tuple[int, int, float]], *, title: str, note: str) -> bytes:
    """Return a PNG: the text as it was sent, red behind the tokens for the target and blue behind those against it.

    White space and line breaks are kept; a line ends before a word that would cross the margin. A letter that no
    font has is a box. After 40 lines, the remaining letters are counted.

    Args:
        text: the text.
        spans: begin and end of each token in the text, in characters, and its value. Text outside of all spans
            has no colour. Colours end at the largest absolute value; values that are not finite count as 0.
        title: subject of the explanation.
        note: method of the explanation.
    """
    values = np.nan_to_num([value for _, _, value in spans], posinf=0, neginf=0).astype(np.float64)
    limit = float(np.abs(values).max(initial=0)) or 1.0
    grounds = page.tinted(np.full((len(values), 3), 255.0), values / limit)
    colours = [tuple(ground) if value else None for ground, value in zip(grounds.tolist(), values, strict=True)]
    tokens = np.full(len(text), -1)
    for number, (begin, end, _) in enumerate(spans):
        tokens[max(begin, 0) : max(end, 0)] = number

    lines, length = _lines(text, tokens)
    last = f"… {len(text) - length} characters more" if length < len(text) else "" if text.strip() else "(no text)"
    height = (len(lines) + bool(last)) * _LINE
    sheet = page.Page(_WIDTH, height + 20 + page.LEGEND, title=title, note=note)
    for number, line in enumerate(lines):
        for piece in line:
            _write(sheet, piece, sheet.top + number * _LINE, colours[piece.token] if piece.token >= 0 else None)
    if last:
        base = sheet.top + height - _LINE + page.TEXT + 2
        page.write(sheet.pen, (page.MARGIN, base), last, page.TEXT, page.FAINT)
    sheet.legend(_WIDTH - page.MARGIN - _LEGEND, sheet.top + height + 20, _LEGEND, limit)
    return sheet.png()


def _lines(text: str, tokens: np.ndarray) -> tuple[list[list[_Piece]], int]:
    """Return the lines that are shown, and the number of the text's characters in them."""
    width = _WIDTH - 2 * page.MARGIN
    lines: list[list[_Piece]] = [[]]
    for match in _BREAKS.finditer(text, 0, _MOST_LETTERS):
        begin, word = match.start(), match.group()
        if word[0] in "\r\n":
            lines.append([])
        else:
            pieces = list(_pieces(word, tokens[begin : match.end()]))
            is_space, wide = word.isspace(), sum(piece.right for piece in pieces)
            if not is_space and lines[-1] and lines[-1][-1].right + wide > width:
                lines.append([])
            if wide > width:  # a word that must be broken
                pieces = [_piece(piece.token, letter, 0.0) for piece in pieces for letter in piece.text]
            for piece in pieces:
                left = lines[-1][-1].right if lines[-1] else 0.0
                if left + piece.right > width:
                    if is_space:  # may cross the margin
                        break
                    lines.append([])
                    left = 0.0
                _append(lines[-1], piece, left)
        if len(lines) > _MOST_LINES:
            # A word too long for a line may begin on the shown lines.
            over = sum(len(piece.text) for line in lines[_MOST_LINES:] for piece in line)
            return lines[:_MOST_LINES], match.end() - over
    return lines, min(len(text), _MOST_LETTERS)


def _pieces(word: str, tokens: np.ndarray) -> Iterator[_Piece]:
    """Cut a word at changes of the token; each piece begins at 0."""
    cuts = [0, *(np.flatnonzero(np.diff(tokens)) + 1).tolist(), len(word)]
    for begin, end in itertools.pairwise(cuts):
        yield _piece(int(tokens[begin]), word[begin:end], 0.0)


def _piece(token: int, text: str, left: float) -> _Piece:
    padding = 2 * _PAD if token >= 0 else 0
    return _Piece(token, text, left, left + padding + page.width_of(text.expandtabs(4), page.TEXT))


def _append(line: list[_Piece], piece: _Piece, left: float) -> None:
    if line and line[-1].token == piece.token:
        line[-1] = _piece(piece.token, line[-1].text + piece.text, line[-1].left)
    else:
        line.append(_piece(piece.token, piece.text, left))


def _write(sheet: page.Page, piece: _Piece, top: int, ground: page.Colour | None) -> None:
    left, right = page.MARGIN + piece.left, page.MARGIN + piece.right
    is_dark = False
    if ground:
        # A pixel of the page separates a token from the next.
        edges = (round(left), top, max(round(right) - 2, round(left)), top + _LINE - 5)
        sheet.pen.rounded_rectangle(edges, 4, fill=ground)
        red, green, blue = ground
        is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < _DARK
    baseline = left + (_PAD if piece.token >= 0 else 0), top + page.TEXT + 2
    page.write(sheet.pen, baseline, piece.text.expandtabs(4), page.TEXT, page.PAPER if is_dark else page.INK)
