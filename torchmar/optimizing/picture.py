"""The variants of an optimisation as a picture: a bar for the time of a batch, by verdict."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from torchmar.load import svg, svg_axis
from torchmar.load.numbers import number
from torchmar.optimizing.results import Report, Row, Verdict

WIDTH = 520
_LEFT, _RIGHT, _ROW, _BAR, _TOP, _BOTTOM = 145, 105, 26, 15, 52, 34
_COLOURS = {Verdict.CHOSEN: 2, Verdict.BASELINE: 0, Verdict.SLOWER: 7, Verdict.REJECTED: 4, Verdict.UNDECIDED: 1}
_NAMES = {
    Verdict.CHOSEN: "chosen",
    Verdict.BASELINE: "original",
    Verdict.SLOWER: "agrees",
    Verdict.REJECTED: "rejected",
    Verdict.UNDECIDED: "too few inputs",
}


def draw(report: Report, batch_size: int | None = None) -> str:
    """Return the picture as an ``<svg>`` element; the fastest variant is at the top.

    Args:
        report: report of the optimisation.
        batch_size: batch size of the times; default: the one that decides.
    """
    size = batch_size or report.batch_sizes[0]
    timed = [(row, timing) for row in report.rows if (timing := row.timing(size))]
    timed.sort(key=lambda pair: pair[1].seconds)
    baseline = report.baseline.timing(size)
    highest = max((timing.interval[1] for _, timing in timed), default=0.001) * 1000
    scale = (WIDTH - _LEFT - _RIGHT) / highest
    height = _TOP + _ROW * len(timed) + _BOTTOM
    bottom = height - _BOTTOM
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">',
        f"<title>{escape(_title(report, size))}</title>",
        svg.text_element(0, 13, _title(report, size), "title"),
        *_legend([row.verdict for row, _ in timed]),
    ]
    for value in svg_axis.linear_ticks(0, highest, 5):
        place = _LEFT + value * scale
        parts += [
            svg.line_element(place, _TOP - 4, place, bottom, "grid"),
            svg.text_element(place, bottom + 14, number(value), "axis", "middle"),
        ]
    for index, (row, timing) in enumerate(timed):
        middle = _TOP + _ROW * (index + 0.5)
        milliseconds = timing.seconds * 1000
        end = _LEFT + milliseconds * scale
        low, high = (_LEFT + bound * 1000 * scale for bound in timing.interval)
        label = f"{number(milliseconds)} ms"
        if baseline and row is not report.baseline:
            label += f", {baseline.seconds / timing.seconds:.2f}x"
        colour = _COLOURS[row.verdict]
        parts += [
            svg.text_element(_LEFT - 8, middle + 4, row.title, "", "end"),
            _bar(row, middle, end - _LEFT, colour),
            svg.line_element(low, middle, high, middle, f"base s{colour}" if _is_rejected(row) else "base"),
            svg.text_element(max(end, high) + 6, middle + 4, label, "axis"),
        ]
    parts += [
        svg.line_element(_LEFT, _TOP - 4, _LEFT, bottom, "base"),
        svg.text_element(
            (_LEFT + WIDTH - _RIGHT) / 2,
            height - 4,
            f"ms of a batch of {size}; lines are 95 % intervals",
            "axis",
            "middle",
        ),
        "</svg>",
    ]
    return "\n".join(parts)


def _title(report: Report, size: int) -> str:
    threads = f"{report.threads} thread{'s' * (report.threads != 1)}"
    return f"{report.name} {report.version}: time of a batch of {size}, {threads}"


def _is_rejected(row: Row) -> bool:
    return row.verdict in (Verdict.REJECTED, Verdict.UNDECIDED)


def _bar(row: Row, middle: float, length: float, colour: int) -> str:
    """Return a bar, hollow for a rejected variant."""
    style = f"hollow s{colour}" if _is_rejected(row) else f"f{colour}"
    return (
        f'<rect x="{_LEFT}" y="{middle - _BAR / 2:.1f}" width="{max(1.0, length):.1f}" height="{_BAR}" '
        f'class="{style}"><title>{escape(row.title)}: {escape(row.reason)}</title></rect>'
    )


def _legend(verdicts: list[Verdict]) -> Iterator[str]:
    place = 0.0
    for verdict, name in _NAMES.items():
        if verdict in verdicts:
            colour = _COLOURS[verdict]
            style = f"hollow s{colour}" if verdict in (Verdict.REJECTED, Verdict.UNDECIDED) else f"f{colour}"
            yield f'<rect x="{place:.1f}" y="23" width="10" height="10" class="{style}"/>'
            yield svg.text_element(place + 15, 32, name, "axis")
            place += 15 + 6.6 * len(name) + 18
