"""The report of an optimisation as HTML: self-contained, and no rejected variant looks like a gain."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

from tests.support.html_document import Document
from torchmar.load.results import Machine
from torchmar.optimizing import picture
from torchmar.optimizing.html_report import html
from torchmar.optimizing.results import Agreement, Report, Row, Timing, Verdict


def row(name: str, milliseconds: float, verdict: Verdict, reason: str = "a reason", labels: float = 1.0) -> Row:
    seconds = milliseconds / 1000
    return Row(
        variant=name,
        title=name,
        verdict=verdict,
        reason=reason,
        timings=tuple(
            Timing(batch_size=size, seconds=seconds * size, interval=(seconds * size, seconds * size), runs=9)
            for size in (1, 8)
        ),
        agreement=Agreement(inputs=309, labels=labels, cosine=0.9999999, relative_error=0.01, worst_input="cat.jpg"),
        size=1_000_000,
        load_seconds=0.5,
        memory=2_000_000,
        needs=("amx_bf16|avx512_bf16",),
    )


REPORT = Report(
    name="net",
    version="1.0",
    archive="0" * 64,
    original={"net.onnx": "1" * 64},
    created="2026-11-29T12:00:00+00:00",
    machine=Machine(processor="a processor", cores=2, flags=("amx_int8",), system="Linux", python="3.11"),
    threads=1,
    batch_sizes=(1, 8),
    requirements=("labels>=0.99",),
    inputs=309,
    calibration_inputs=100,
    rows=(
        row("original", 40, Verdict.BASELINE),
        row("right", 10, Verdict.CHOSEN, "4.0 times as fast as the original"),
        row("nearly", 5, Verdict.REJECTED, "97.4 % of the labels agree", labels=0.99999),
        Row(variant="one", title="one", verdict=Verdict.FAILED, reason="it <b>crashed</b>"),
        Row(variant="other", title="other", verdict=Verdict.FAILED, reason="it <b>crashed</b>"),
    ),
    packages={"torch": "2.14"},
    seconds=12.0,
    disturbances=("other programs used 1.7 cores",),
)
REPORT = replace(REPORT, rows=(replace(REPORT.rows[0], variant="baseline"), *REPORT.rows[1:]))


def text(report: Report) -> str:
    return " ".join(" ".join(data for _, data in Document(html(report)).text).split())


def test_the_page_loads_nothing_and_its_verdict_comes_first() -> None:
    document = Document(html(REPORT))
    assert not [value for tag, name, value in document.attributes if name in ("src", "href") or tag == "script"]
    shown = text(REPORT)
    assert shown.index("right is chosen: 4.0 times as fast as the original") < shown.index("Times")
    assert "it needs amx_bf16|avx512_bf16, without which the original is served" in shown
    assert "Rejected, since the answers differ too much: nearly" in shown
    assert "The times may be wrong" in shown and "other programs used 1.7 cores" in shown
    assert "2026-11-29 12:00 UTC" in shown


def test_reasons_that_are_alike_are_one_line_and_text_is_escaped() -> None:
    assert "one, other : failed: it <b>crashed</b>" in text(REPORT)
    assert "<b>crashed" not in html(REPORT)


def test_a_share_below_one_does_not_read_as_all() -> None:
    assert "99.99 %" in text(REPORT)


def test_without_a_choice_the_original_stays() -> None:
    report = replace(REPORT, rows=(REPORT.rows[0], row("few", 1, Verdict.UNDECIDED)))
    assert "The original stays" in text(report)
    assert "309 inputs cannot show that the requirements hold: give more with --data" in text(report)


def test_the_picture_has_a_bar_for_each_measured_variant_and_those_of_rejected_ones_are_hollow() -> None:
    drawn = picture.draw(REPORT)
    ElementTree.fromstring(drawn)
    bars = re.findall(r'<rect x="145"[^>]*width="([\d.]+)"[^>]*class="([^"]*)"><title>(\w+)', drawn)
    assert [(title, style) for _, style, title in bars] == [
        ("nearly", "hollow s4"),
        ("right", "f2"),
        ("original", "f0"),
    ]
    widths = [float(width) for width, _, _ in bars]
    assert [round(width / widths[0]) for width in widths] == [1, 2, 8]
    assert "5 ms, 8.00x" in drawn and "40 ms<" in drawn
    assert "80 ms, 4.00x" in picture.draw(REPORT, 8)
