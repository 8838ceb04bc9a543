"""torchmar.load.svg draws charts with round ticks, whose marks are within the frame and at the right places."""

from __future__ import annotations

import doctest
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from torchmar.load import svg, svg_axis, svg_style
from torchmar.load.numbers import number
from torchmar.load.svg import Band, Bars, Line, Point, Points, Rule, Span, Whiskers, chart
from torchmar.load.svg_axis import Axis

X, Y = Axis("requests/s"), Axis("latency, ms")
SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.floats(1e-4, 1e7)


def parse(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def texts(text: str) -> list[str]:
    return [element.text or "" for element in parse(text).iter(f"{SVG}text")]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_linear_ticks_are_multiples_of_1_2_or_5_within_the_axis(low: float, length: float, count: int) -> None:
    high = low + length
    ticks = svg_axis.linear_ticks(low, high, count)
    assert all(low - length * 1e-6 <= tick <= high + length * 1e-6 for tick in ticks)
    assume(len(ticks) > 1)
    step = ticks[1] - ticks[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-6), 3) in (1, 2, 5)
    assert len(ticks) <= 1.6 * count + 1


@given(VALUES, st.floats(1.5, 1e6))
def test_logarithmic_ticks_are_round_within_the_axis_and_not_too_many(low: float, factor: float) -> None:
    ticks = svg_axis.log_ticks(low, low * factor)
    assert all(low * 0.99 <= tick <= low * factor * 1.01 for tick in ticks)
    assert all(f"{tick:e}"[0] in "1235" and set(f"{tick:e}"[1:8]) <= {".", "0"} for tick in ticks)
    assert len(ticks) <= 9


@pytest.mark.parametrize(
    ("value", "text", "fixed"),
    [
        (0, "0", "0"),
        (0.01234, "0.012", "0.012"),
        (0.5, "0.5", "0.500"),
        (5, "5", "5.00"),
        (16, "16", "16.0"),
        (99.96, "100", "100"),
        (1234.5, "1,234", "1,234"),
        (0.00002, "2.0e-05", "2.0e-05"),
        (math.inf, "∞", "∞"),
        (math.nan, "-", "-"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, text: str, fixed: str) -> None:
    assert (number(value), number(value, fixed=True)) == (text, fixed)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.one_of(st.none(), VALUES, st.just(0.0), st.just(math.nan))), max_size=20),
    st.booleans(),
    st.booleans(),
)
def test_every_coordinate_is_within_the_picture(
    points: list[tuple[float, float | None]], log: bool, end_labels: bool
) -> None:
    known = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    marks = [
        Line("a name", points, markers=True),
        Band([(x, y / 2, y * 2) for x, y in known]),
        Whiskers([(x, y / 2, y * 2) for x, y in known]),
        Points("points", [Point(x, y, "text", "label") for x, y in known]),
        Points("crosses", [Point(x, y) for x, y in known], shape="cross"),
        Bars("bars", [(x, 0.0, y, "text") for x, y in known]),
    ]
    drawn = parse(chart(marks, X, Axis("ms", log=log), title="t", end_labels=end_labels))
    for element in drawn.iter():
        for name, limit in (
            ("x", svg.WIDTH),
            ("x1", svg.WIDTH),
            ("cx", svg.WIDTH),
            ("y", svg.HEIGHT),
            ("y1", svg.HEIGHT),
        ):
            if name in element.attrib:
                assert -10 <= float(element.attrib[name]) <= limit + 10, ElementTree.tostring(element)


def test_a_line_goes_through_its_points_and_is_interrupted_where_there_is_none() -> None:
    line = Line("", [(0, 0.0), (10, 10.0), (20, None), (30, 0.0), (40, 10.0)])
    drawn = parse(chart([line], X, Axis("ms", low=0, high=10), title="t"))
    (path,) = [element.attrib["d"] for element in drawn.iter(f"{SVG}path")]
    places = re.findall(r"([ML])([\d.]+) ([\d.]+)", path)
    assert [command for command, _, _ in places] == ["M", "L", "M", "L"]
    xs, ys = [float(x) for _, x, _ in places], [float(y) for _, _, y in places]
    assert xs[1] - xs[0] == pytest.approx(xs[3] - xs[2], abs=0.3)
    assert xs[2] - xs[1] == pytest.approx(2 * (xs[1] - xs[0]), abs=0.3)
    assert ys[0] == ys[2] > ys[1] == ys[3]


def test_equal_factors_are_equal_distances_on_a_logarithmic_axis() -> None:
    points = [Point(0, 1.0), Point(1, 10.0), Point(2, 100.0)]
    drawn = parse(chart([Points("", points)], X, Axis("ms", log=True), title="t"))
    ys = [float(element.attrib["cy"]) for element in drawn.iter(f"{SVG}circle")]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.3)


def test_names_of_lines_are_at_their_ends_and_do_not_overlap() -> None:
    lines = [Line(f"name {index}", [(0, 1.0), (1, 5.0 + index / 100)], index) for index in range(5)]
    drawn = parse(chart(lines, X, Y, title="t"))
    places = [float(e.attrib["y"]) for e in drawn.iter(f"{SVG}text") if (e.text or "").startswith("name")]
    gaps = [abs(a - b) for a, b in zip(sorted(places), sorted(places)[1:], strict=False)]
    assert len(places) == 5
    assert min(gaps) >= 12.9


def test_marks_with_names_are_in_the_legend_unless_a_line_has_its_name_at_its_end() -> None:
    marks = [
        Span("warm-up", 0, 1),
        Line("p50", [(0, 1.0), (2, 1.0)]),
        Points("errors", [Point(1, 1)]),
        Points("none", []),
    ]
    assert {"warm-up", "errors", "p50"} <= set(texts(chart(marks, X, Y, title="t")))
    assert "none" not in texts(chart(marks, X, Y, title="t"))
    assert texts(chart(marks, X, Y, title="t", end_labels=False)).count("p50") == 1


def test_the_legend_shows_each_mark_once_as_it_is_drawn() -> None:
    marks = [
        Points("hollow", [Point(1, 1)], shape="hollow"),
        Points("cross", [Point(1, 1)], shape="cross"),
        Line("dashed", [(0, 1.0), (2, 1.0)], dashed=True),
        Bars("bars", [(1, 0, 1, "")]),
        Bars("bars", [(2, 0, 1, "")]),
    ]
    text = chart(marks, X, Y, title="t", end_labels=False)
    assert [name for name in texts(text) if name in ("hollow", "cross", "dashed", "bars")] == [
        "hollow",
        "cross",
        "dashed",
        "bars",
    ]
    legend = [element for element in parse(text) if element.attrib.get("class", "")][1:5]
    assert [element.tag.removeprefix(SVG) for element in legend] == ["circle", "path", "line", "rect"]


def test_stacked_bars_stand_upon_each_other() -> None:
    bars = svg.stacked([("queue", [1.0, None], 1), ("inference", [2.0, 3.0], 0)], " ms")
    assert bars[0].points == [(0.0, 0.0, 1.0, "queue: 1 ms")]
    assert bars[1].points == [(0.0, 1.0, 3.0, "inference: 2 ms"), (1.0, 0.0, 3.0, "inference: 3 ms")]


def test_rules_and_ticks_of_ones_own_are_labelled() -> None:
    marks = [Points("", [Point(1, 5)]), Rule(10, "limit 10 ms"), Rule(1, "chosen", vertical=True)]
    drawn = texts(chart(marks, Axis("x", low=0, high=2, ticks=[(1, "one")]), Y, title="t"))
    assert {"limit 10 ms", "chosen", "one"} <= set(drawn)


def test_text_is_escaped() -> None:
    text = chart([Points("<b>&", [Point(1, 1, "<script>", "</svg>")])], Axis("<x>"), Axis('"y"'), title="<t>")
    assert {"<b>&", "</svg>", "<x>", '"y"', "<t>"} <= set(texts(text))


def test_an_empty_chart_has_axes() -> None:
    assert {"nothing", "requests/s"} <= set(texts(chart([], X, Y, title="nothing")))


def test_a_file_of_its_own_has_the_colours_of_both_themes() -> None:
    text = svg_style.standalone(chart([Points("p", [Point(1, 1)])], X, Y, title="t"))
    assert parse(text).tag == f"{SVG}svg"
    assert parse(text).attrib["viewBox"] == "-12 -12 464 304"
    assert "prefers-color-scheme:dark" in text


def test_the_example_of_the_module_works() -> None:
    result = doctest.testmod(svg)
    assert result.attempted
    assert not result.failed
