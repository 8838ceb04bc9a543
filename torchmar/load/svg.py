"""Charts as SVG text: axes with round ticks, lines, bands, bars, points and labels; no script, light and dark.

A chart is `WIDTH` units wide and its text is 12 units high: it is readable when shown at 360 to 600 pixels. Its classes
are those of `torchmar.load.svg_style`.

Example:
    >>> from torchmar.load import svg
    >>> from torchmar.load.svg_axis import Axis
    >>> line = svg.Line("p99", [(50, 21.0), (100, 24.5), (200, 61.0)])
    >>> text = svg.chart([line], Axis("requests/s"), Axis("latency, ms"), title="Latency against rate")
    >>> text.startswith("<svg"), "latency, ms" in text
    (True, True)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from torchmar.load.numbers import number
from torchmar.load.svg_axis import Axis, Scale

WIDTH, HEIGHT = 440, 280
#: The average width of a character in units, because no font is measured.
_CHARACTER = 6.4
_LINE = 15


@dataclass(frozen=True)
class Line:
    """A line through points; None instead of y interrupts it.

    Attributes:
        name: the label at its end, or in the legend; empty for none.
        points: pairs of x and y.
        colour: 0 to 7.
        markers: whether each point has a dot.
        dashed: whether the line is dashed.
        thin: whether the line is thin.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 0
    markers: bool = False
    dashed: bool = False
    thin: bool = False


@dataclass(frozen=True)
class Band:
    """The area between two values of y at each x."""

    points: Sequence[tuple[float, float, float]]
    colour: int = 0


@dataclass(frozen=True)
class Whiskers:
    """An interval of y at each x."""

    points: Sequence[tuple[float, float, float]]
    colour: int = 0


@dataclass(frozen=True)
class Point:
    """A point: its position, the text of its tooltip, and its label."""

    x: float
    y: float
    text: str = ""
    label: str = ""


@dataclass(frozen=True)
class Points:
    """Single points of one kind."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    shape: Literal["dot", "hollow", "cross"] = "dot"


@dataclass(frozen=True)
class Bars:
    """Rectangles of one kind: x, y of the lower and of the upper end, and the text of the tooltip."""

    name: str
    points: Sequence[tuple[float, float, float, str]]
    colour: int = 0
    width: float = 0.7


@dataclass(frozen=True)
class Span:
    """A part of the horizontal axis, with its name in the legend."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class Rule:
    """A dashed line at a value of x or of y, such as a limit."""

    value: float
    label: str
    vertical: bool = False
    colour: int = 4


Mark = Line | Band | Whiskers | Points | Bars | Span | Rule


def stacked(parts: Sequence[tuple[str, Sequence[float | None], int]], unit: str = "") -> list[Bars]:
    """Return stacked bars; each part has a name, its values at x = 0, 1, ..., and a colour."""
    tops: dict[int, float] = {}
    result = []
    for name, values, colour in parts:
        bars = []
        for x, value in enumerate(values):
            if value:
                low = tops.get(x, 0.0)
                tops[x] = low + value
                bars.append((float(x), low, low + value, f"{name}: {number(value)}{unit}"))
        result.append(Bars(name, bars, colour))
    return result


def chart(
    marks: Sequence[Mark],
    x: Axis,
    y: Axis,
    *,
    title: str,
    description: str = "",
    end_labels: bool = True,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> str:
    """Return a chart as an ``<svg>`` element.

    Args:
        marks: lines, bars and other marks, from the lowest layer to the highest.
        x: the horizontal axis.
        y: the vertical axis.
        title: the text above it, and its name for screen readers.
        description: further text for screen readers.
        end_labels: whether lines have their names at their ends; otherwise the names are in the legend.
        width: width in units of the view box.
        height: height in units of the view box.
    """
    lines = [mark for mark in marks if isinstance(mark, Line) and mark.name and _drawable(mark.points)]
    labelled = lines if end_labels else []
    legend = [
        mark
        for mark in marks
        if isinstance(mark, Span)
        or (isinstance(mark, Line | Bars | Points) and mark.name and mark not in labelled and mark.points)
    ]
    scattered = all(isinstance(mark, Points | Rule) for mark in marks)
    xs = Scale(x, (value for mark in marks for value in _x_values(mark)), margin=0.03 if scattered else 0.0)
    ys = Scale(y, (value for mark in marks for value in _y_values(mark)), margin=0.06, from_zero=True)
    rows = _legend_rows(legend, width)
    left = 14 + max(18.0, _CHARACTER * max((len(text) for _, text in ys.ticks), default=0)) + _LINE
    right = 12 + max((_CHARACTER * len(line.name) + 4 for line in labelled), default=0)
    frame = _Frame(left, 26 + _LINE * len(rows), width - right, height - 40, xs, ys)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(description)}</desc>" if description else "",
        text_element(0, 13, title, "title"),
        *_legend(rows),
        *_axes(frame, x, y, width, height),
        *(part for mark in marks for part in _draw(mark, frame)),
        *_line_labels(labelled, frame),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class _Frame:
    left: float
    top: float
    right: float
    bottom: float
    x_scale: Scale
    y_scale: Scale

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * self.x_scale.share(value)

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * self.y_scale.share(value)


def _drawable(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


def _x_values(mark: Mark) -> Iterator[float]:
    if isinstance(mark, Bars):
        for x, *_ in mark.points:
            yield from (x - mark.width / 2, x + mark.width / 2)
    elif isinstance(mark, Points):
        yield from (point.x for point in mark.points)
    elif isinstance(mark, Line | Band | Whiskers):
        yield from (point[0] for point in mark.points)
    elif isinstance(mark, Span):
        yield from (mark.low, mark.high)
    elif mark.vertical:
        yield mark.value


def _y_values(mark: Mark) -> Iterator[float]:
    if isinstance(mark, Line):
        yield from (y for _, y in _drawable(mark.points))
    elif isinstance(mark, Points):
        yield from (point.y for point in mark.points)
    elif isinstance(mark, Band | Whiskers):
        yield from (value for point in mark.points for value in point[1:])
    elif isinstance(mark, Bars):
        yield from (value for point in mark.points for value in point[1:3])
    elif isinstance(mark, Rule) and not mark.vertical:
        yield mark.value


def text_element(x: float, y: float, text: str, classes: str = "", anchor: str = "start") -> str:
    """Return a text; ``anchor`` is the part of the text that is at x."""
    anchored = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{anchored} class="{classes}">{escape(text)}</text>'


def line_element(x1: float, y1: float, x2: float, y2: float, classes: str) -> str:
    """Return a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{classes}"/>'


def _axes(frame: _Frame, x: Axis, y: Axis, width: int, height: int) -> Iterator[str]:
    for value, text in frame.y_scale.ticks:
        yield line_element(frame.left, frame.y(value), frame.right, frame.y(value), "grid")
        yield text_element(frame.left - 6, frame.y(value) + 4, text, "axis", "end")
    end = -math.inf
    for value, text in frame.x_scale.ticks:
        place, half = frame.x(value), _CHARACTER * len(text) / 2
        yield line_element(place, frame.bottom, place, frame.bottom + 4, "base")
        if place - half > end + 4:  # texts that would overlap are left out
            yield text_element(min(place, width - half), frame.bottom + 17, text, "axis", "middle")
            end = place + half
    yield line_element(frame.left, frame.bottom, frame.right, frame.bottom, "base")
    yield text_element((frame.left + frame.right) / 2, height - 5, x.label, "axis", "middle")
    middle = (frame.top + frame.bottom) / 2
    yield (
        f'<text transform="translate(11 {middle:.1f}) rotate(-90)" text-anchor="middle" class="axis">'
        f"{escape(y.label)}</text>"
    )


def _draw(mark: Mark, frame: _Frame) -> Iterator[str]:
    if isinstance(mark, Line):
        yield from _draw_line(mark, frame)
    elif isinstance(mark, Band):
        upper = [f"{frame.x(x):.1f},{frame.y(high):.1f}" for x, _, high in mark.points]
        lower = [f"{frame.x(x):.1f},{frame.y(low):.1f}" for x, low, _ in reversed(mark.points)]
        yield f'<polygon points="{" ".join(upper + lower)}" class="band f{mark.colour}"/>'
    elif isinstance(mark, Whiskers):
        for x, low, high in mark.points:
            place, top, bottom = frame.x(x), frame.y(high), frame.y(low)
            yield line_element(place, bottom, place, top, f"s{mark.colour}")
            yield line_element(place - 3, top, place + 3, top, f"s{mark.colour}")
            yield line_element(place - 3, bottom, place + 3, bottom, f"s{mark.colour}")
    elif isinstance(mark, Points):
        yield from _draw_points(mark, frame)
    elif isinstance(mark, Bars):
        for x, low, high, text in mark.points:
            left, right = frame.x(x - mark.width / 2), frame.x(x + mark.width / 2)
            top, bottom = frame.y(high), frame.y(low)
            yield (
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" '
                f'class="f{mark.colour}"><title>{escape(text)}</title></rect>'
            )
    elif isinstance(mark, Span):
        left, right = frame.x(mark.low), frame.x(mark.high)
        yield (
            f'<rect x="{left:.1f}" y="{frame.top:.1f}" width="{right - left:.1f}" '
            f'height="{frame.bottom - frame.top:.1f}" class="span"/>'
        )
    elif mark.vertical:
        place = frame.x(mark.value)
        yield line_element(place, frame.top, place, frame.bottom, f"dashed s{mark.colour}")
        yield text_element(place - 4, frame.top + 12, mark.label, f"halo f{mark.colour}", "end")
    else:
        place = frame.y(mark.value)
        yield line_element(frame.left, place, frame.right, place, f"dashed s{mark.colour}")
        yield text_element(frame.left + 4, place - 4, mark.label, f"halo f{mark.colour}")


def _draw_line(line: Line, frame: _Frame) -> Iterator[str]:
    path, pen_down = [], False
    for x, y in line.points:
        if y is None or not math.isfinite(y):
            pen_down = False
            continue
        path.append(f"{'L' if pen_down else 'M'}{frame.x(x):.1f} {frame.y(y):.1f}")
        pen_down = True
    yield f'<path d="{"".join(path)}" class="line s{line.colour}{_line_style(line)}"/>'
    if line.markers:
        for x, y in _drawable(line.points):
            yield (
                f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" class="f{line.colour}">'
                f"<title>{escape(f'{line.name}: {number(y)} at {number(x)}')}</title></circle>"
            )


def _line_style(line: Line) -> str:
    return " dashed" * line.dashed + " thin" * line.thin


def _draw_points(mark: Points, frame: _Frame) -> Iterator[str]:
    for point in mark.points:
        x, y = frame.x(point.x), frame.y(point.y)
        yield _shape(mark, x, y, f"<title>{escape(point.text or point.label)}</title>")
        if point.label:
            right = x + 8 + _CHARACTER * len(point.label) <= frame.right
            yield text_element(x + 8 if right else x - 8, y - 6, point.label, "halo", "start" if right else "end")


def _shape(mark: Points, x: float, y: float, title: str = "") -> str:
    if mark.shape == "cross":
        return f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" class="line s{mark.colour}">{title}</path>'
    style = f"hollow s{mark.colour}" if mark.shape == "hollow" else f"f{mark.colour}"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="{style}">{title}</circle>'


def _line_labels(lines: Sequence[Line], frame: _Frame) -> Iterator[str]:
    """Yield the names of lines at their ends, moved apart where they would overlap."""
    ends = sorted(
        ((frame.y(_drawable(line.points)[-1][1]), frame.x(_drawable(line.points)[-1][0]), line) for line in lines),
        key=lambda end: end[:2],
    )
    places = [end[0] for end in ends]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + 13)
    if places and places[-1] > frame.bottom:
        places[-1] = frame.bottom
        for index in range(len(places) - 2, -1, -1):
            places[index] = min(places[index], places[index + 1] - 13)
    for place, (_, x, line) in zip(places, ends, strict=True):
        yield text_element(x + 7, place + 4, line.name, f"f{line.colour}")


_Named = Line | Points | Bars | Span


def _legend_rows(marks: Sequence[_Named], width: int) -> list[list[tuple[float, _Named]]]:
    rows: list[list[tuple[float, _Named]]] = []
    x = math.inf
    for mark in {mark.name: mark for mark in marks}.values():
        length = 16 + _CHARACTER * len(mark.name) + 12
        if x + length > width:
            rows.append([])
            x = 0.0
        rows[-1].append((x, mark))
        x += length
    return rows


def _legend(rows: Sequence[Sequence[tuple[float, _Named]]]) -> Iterator[str]:
    for index, row in enumerate(rows):
        y = 25.5 + _LINE * index
        for x, mark in row:
            if isinstance(mark, Points):
                yield _shape(mark, x + 5.5, y)
            elif isinstance(mark, Line):
                yield line_element(x, y, x + 12, y, f"line s{mark.colour}{_line_style(mark)}")
            else:
                style = "span" if isinstance(mark, Span) else f"f{mark.colour}"
                yield f'<rect x="{x:.1f}" y="{y - 5.5}" width="11" height="11" rx="2" class="{style}"/>'
            yield text_element(x + 16, y + 4.5, mark.name)
