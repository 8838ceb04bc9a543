"""Tables of a report as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from torchmar.load.numbers import number
from torchmar.load.results import Bounds

NOTHING = "–"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], wide: bool = False) -> str:
    """Return a table; cells are HTML."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table{' class=wide' if wide else ''}><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table>"


def with_interval(value: float, interval: Bounds | None, mark: str = "") -> str:
    """Return a cell with a value and a mark, and its interval in small figures."""
    ends = f"<small>{_ends(interval)}</small>" if interval else ""
    return number(value, fixed=True) + mark + ends


def _ends(interval: Bounds) -> str:
    return " – ".join(number(end, fixed=True) for end in interval)


def with_range(value: float, interval: Bounds | None) -> str:
    """Return a value and its interval as plain text."""
    return number(value, fixed=True) + (f" ({_ends(interval)})" if interval else "")
