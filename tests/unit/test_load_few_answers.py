"""Percentiles with too few answers beyond them are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support import bench_reports
from torchmar.load.few_answers import too_few
from torchmar.load.recorder import Recorder, counts
from torchmar.load.results import Step
from torchmar.load.statistics import least_count


def step_of(answers: int) -> Step:
    """Return a step of ten seconds with answers after 1 ms."""
    recorder = Recorder(0.0, 10.0)
    for number in range(answers):
        due = number * 10.0 / answers
        recorder.on_due(due, due)
        recorder.on_answer(due, due, due + 0.001)
    latency, histogram = recorder.latency(20), counts(recorder.histogram(20))
    return replace(bench_reports.step(), latency_ms=latency, histogram=histogram, throughput=answers / 10)


@pytest.mark.parametrize(("percent", "count"), [(50, 20), (90, 100), (95, 200), (99, 1_000), (99.9, 10_000)])
def test_ten_answers_beyond_a_percentile_are_enough(percent: float, count: int) -> None:
    assert least_count(percent) == count


def test_a_percentile_of_few_answers_is_named_with_what_it_needs() -> None:
    assert too_few(step_of(40)) == (
        "40 answers are too few for p90, p95 and p99; p99 needs 1,000, so that 10 are beyond it, which takes 250 s"
    )
    assert (
        too_few(step_of(999))
        == "999 answers are too few for p99; p99 needs 1,000, so that 10 are beyond it, which takes 10 s"
    )


def test_enough_answers_are_not_named_and_the_last_percentile_is_marked_only() -> None:
    step = step_of(1_000)
    assert step.latency_ms
    assert step.latency_ms.uncertain == ("p999",)
    assert not too_few(step)
