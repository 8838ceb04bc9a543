"""A report as HTML: self-contained, its verdict at the top, and no figures of steps that are not valid."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from tests.support import bench_reports
from tests.support.html_document import Document
from torchmar.load.histogram import Histogram
from torchmar.load.html_report import html
from torchmar.load.results import Failure, HistogramCounts, Limit, Report, ServerSplit, Step, Window


def measured(rate: float, values: list[int] | None = None) -> Step:
    """Return a step with windows, and a histogram of its values in microseconds."""
    histogram = Histogram(values or range(5_000, 25_000, 20)).to_json()
    windows = tuple(
        Window(
            start_s=index, duration_s=1, sent=100, completed=99, errors=index % 2, in_flight=1, p50_ms=8.0, p99_ms=20.0
        )
        for index in range(10)
    )
    counts = HistogramCounts(**{**histogram, "buckets": tuple(map(tuple, histogram["buckets"]))})
    split = ServerSplit(total_ms=12.0, queue_ms=4.25, preprocess_ms=1.0, inference_ms=6.0, postprocess_ms=0.5)
    return replace(bench_reports.step(rate), sent=1000, completed=1000, windows=windows, histogram=counts, server=split)


def verdicts(text: str) -> list[tuple[str, str]]:
    items = re.findall(r'<li class="(\w+)">(.*?)</li>', text, re.DOTALL)
    return [(level, re.sub("<[^>]*>", " ", content)) for level, content in items]


EVERYTHING = bench_reports.report(
    measured(50),
    replace(measured(100), wrong_answers=3, wrong_answer='three.png: "8", not "3"'),
    replace(measured(150), errors=(Failure(kind="status 503", count=20, example="seven.png: no worker"),)),
    replace(measured(200, [77_777_000] * 50), valid=False, invalid_reasons=("sends were late (p99 14 ms)",)),
    replace(measured(300), stable=False, unstable_reason="p50 ms rises from about 8 to 80 in 10 s"),
    replace(
        bench_reports.step(400),
        latency_ms=None,
        windows=(),
        histogram=HistogramCounts(unit="us", significant_digits=3, count=0, sum=0, max=0, buckets=()),
    ),
    *(replace(measured(rate), kind="closed", arrivals=None, rate=None, connections=int(rate)) for rate in (1, 8)),
)


@pytest.mark.parametrize("report", [EVERYTHING, bench_reports.report(bench_reports.step()), bench_reports.report()])
def test_a_report_is_one_document_that_loads_and_runs_nothing(report: Report) -> None:
    text = html(report)
    document = Document(text)
    for tag, name, value in document.attributes:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "form", "base", "image", "use")
        assert name not in ("src", "href", "xlink:href", "srcset", "data", "action", "style"), (tag, name)
        assert not name.startswith("on"), (tag, name)
        assert name in ("xmlns", "content") or "http" not in value
    assert "url(" not in text
    assert "@import" not in text
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in document.attributes


def test_every_chart_is_valid_xml_with_a_title_and_a_table() -> None:
    text = html(EVERYTHING)
    charts = [ElementTree.fromstring(chart) for chart in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    titles = {chart[0].text for chart in charts}
    assert {
        "Latency against rate",
        "Latency against connections",
        "Percentiles of latency",
        "Time in the server",
    } <= titles
    assert {"50/s: latency", "50/s: requests"} <= titles
    for figure in re.findall(r"<figure>.*?</figure>", text, re.DOTALL):
        assert "<summary>Table</summary>" in figure


def test_faults_come_first_then_cautions() -> None:
    levels = [level for level, _ in verdicts(html(EVERYTHING))]
    assert levels == sorted(levels, key=("bad", "warn", "note", "good").index)
    text = " ".join(content for _, content in verdicts(html(EVERYTHING)))
    for part in (
        "3 wrong answers at 100/s, with the status of success.",
        "three.png: &quot;8&quot;, not &quot;3&quot;",
        "200/s is not valid; there are no figures of it. sends were late (p99 14 ms)",
        "Requests failed with status 503: 20 of 1,000 (2.00%) at 150/s.",
        "seven.png: no worker",
        "300/s is not stable. p50 ms rises from about 8 to 80 in 10 s",
        "6 of 8 steps are valid and stable",
    ):
        assert part in text


def test_the_same_fault_of_several_steps_is_one_statement() -> None:
    spoiled = {"valid": False, "invalid_reasons": ("sends were late",)}
    failing = {"errors": (Failure(kind="timeout", count=5, example="a.png:\n  {}"),)}
    report = bench_reports.report(*(replace(measured(rate), **spoiled, **failing) for rate in (50, 100)), measured(150))
    assert verdicts(html(report))[:2] == [
        (
            "bad",
            " Fault 2 of 3 steps are not valid; there are no figures of them. 50/s: sends were late\n"
            "100/s: sends were late ",
        ),
        (
            "warn",
            " Caution Requests failed with timeout: 5 of 1,000 (0.50%) at 50/s, 5 of 1,000 (0.50%) at 100/s."
            " a.png: {} ",
        ),
    ]


def test_a_good_measurement_is_called_good() -> None:
    assert verdicts(html(bench_reports.report(measured(50), measured(100)))) == [
        ("good", " Good All 2 steps are valid and stable; of 2,000 requests none failed."),
        ("good", " Good No wrong answer: those to 10 of 10 requests were compared with the expected ones."),
    ]


def test_answers_that_were_not_compared_are_not_called_right() -> None:
    report = bench_reports.report(measured(50))
    report = replace(report, requests=replace(report.requests, compared=0))
    assert ("note", " Note Answers were not compared: no request has an expected answer.") in verdicts(html(report))
    assert "No wrong answer" not in html(report)


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (
            Limit(rate=240.0, interval=(240.0, 252.0), reason="requests in flight grow"),
            "The server holds 240 requests/s, and not 252: requests in flight grow.",
        ),
        (
            Limit(rate=900.0, interval=None, reason="the client is busy"),
            "The server holds more than 900 requests/s: the client is busy.",
        ),
        (
            Limit(rate=None, interval=None, reason="the lowest rate saturates"),
            "No limit was found: the lowest rate saturates.",
        ),
    ],
)
def test_the_limit_is_at_the_top(limit: Limit, text: str) -> None:
    report = replace(bench_reports.report(measured(50)), limit=limit)
    assert any(text in content for level, content in verdicts(html(report)) if level == "note")


def test_steps_beyond_the_limit_are_saturated_and_no_caution() -> None:
    beyond = replace(
        measured(400),
        stable=False,
        unstable_reason="p50 ms rises",
        complete=False,
        errors=(Failure(kind="status 503", count=9, example="full"),),
    )
    limit = Limit(rate=200.0, interval=(200.0, 210.0), reason="requests in flight grow")
    report = replace(bench_reports.report(measured(100), measured(200), beyond), limit=limit)
    assert [level for level, _ in verdicts(html(report))] == ["note", "good", "good"]
    assert "All 2 steps up to the limit are valid and stable; of 2,000 requests none failed." in html(report)
    assert "<td>400/s</td><td>saturated</td>" in html(report)
    assert "<td>400/s</td><td>not stable</td>" in html(replace(report, limit=None))


def test_an_interrupted_measurement_and_one_without_steps_are_named() -> None:
    report = replace(bench_reports.report(replace(measured(50), complete=False)), complete=False)
    text = " ".join(content for _, content in verdicts(html(report)))
    assert "50/s ended early" in text
    assert "interrupted" in text
    assert "There is no step." in html(bench_reports.report())


def test_a_step_that_is_not_valid_has_no_figures() -> None:
    text = html(EVERYTHING)
    assert "77,7" not in text
    row = re.search(r"<tr><td>200/s</td><td>not valid</td>.*?</tr>", text)
    assert row
    assert row.group().count("–") == 7
    titles = re.findall(r"<title>(200/s: (?:latency|requests))</title>", text)
    assert titles == ["200/s: requests"]


def test_tables_have_the_figures_of_the_report() -> None:
    text = html(bench_reports.report(measured(50), measured(100)))
    assert "<td>20.0<small>19.5 – 20.5</small></td>" in text  # p50 with its interval
    assert "<td>4.25</td>" in text  # the queue
    assert re.search(r"<td>9</td><td>100</td><td>99</td><td>1</td><td>1</td><td>8.00</td><td>20.0</td>", text)


def test_batch_sizes_are_named_by_their_buckets() -> None:
    split = ServerSplit(batch_sizes={1: 5, 2: 3, 4: 2, 8: 0, 16: 1, 0: 1})
    text = html(bench_reports.report(replace(measured(50), server=split)))
    headings = re.findall(r"<th>(.*?)</th>", text)
    assert [name for name in headings if name in ("1", "2", "3–4", "5–8", "9–16", "over 16")] == [
        "1",
        "2",
        "3–4",
        "9–16",
        "over 16",
    ]


def test_many_steps_share_the_colours_of_the_percentile_curve() -> None:
    text = html(bench_reports.report(*(measured(rate) for rate in range(10, 210, 10))))
    assert text.count("s7") > 0
    Document(text)


def test_text_of_servers_and_files_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    report = bench_reports.report(
        replace(
            measured(50),
            wrong_answers=1,
            wrong_answer=evil,
            errors=(Failure(kind=evil, count=1, example=evil),),
            unstable_reason=evil,
            stable=False,
        )
    )
    report = replace(
        report, target=replace(report.target, model=evil, url=evil), requests=replace(report.requests, source=evil)
    )
    text = html(report)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    Document(text)
