"""Two reports are compared step by step, and only what their intervals support is called a regression."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import bench_reports
from torchmar.load.comparing import ReportComparison, compare
from torchmar.load.results import Failure, Limit, Report, Step
from torchmar.load.statistics import difference_interval, share_interval


def step(rate: float = 100.0, p99: float = 25.0, width: float = 0.01, **keys: Any) -> Step:
    """Return a step whose intervals reach a share of ``width`` to both sides."""
    base = bench_reports.step(rate)
    assert base.latency_ms
    latency = replace(
        base.latency_ms,
        p99=p99,
        p50_interval=(20 * (1 - width), 20 * (1 + width)),
        p95_interval=(23 * (1 - width), 23 * (1 + width)),
        p99_interval=(p99 * (1 - width), p99 * (1 + width)),
    )
    throughput = keys.pop("throughput", 100.0)
    interval = (throughput * (1 - width), throughput * (1 + width))
    values = {"sent": 1000, "completed": 1000, "latency_ms": latency, **keys}
    return replace(base, throughput=throughput, throughput_interval=interval, **values)


def compared(old: Step, new: Step, limit: float = 0.05) -> ReportComparison:
    return compare(bench_reports.report(old), bench_reports.report(new), limit)


def verdict(result: ReportComparison, figure: str) -> str:
    return next(change.verdict for change in result.steps[0].changes if change.figure == figure)


@pytest.mark.parametrize(
    ("p99", "width", "expected"),
    [
        (25.0, 0.01, "same"),
        (30.0, 0.01, "regression"),
        (26.0, 0.01, "worse"),  # by 4 %, within the limit
        (20.0, 0.01, "better"),
        (30.0, 0.20, "undecided"),  # the intervals are too wide
        (25.0, 0.20, "undecided"),
    ],
)
def test_a_latency_is_judged_by_the_interval_of_its_ratio(p99: float, width: float, expected: str) -> None:
    result = compared(step(width=width), step(p99=p99, width=width))
    assert verdict(result, "p99 ms") == expected
    assert result.passed == (expected != "regression")


@pytest.mark.parametrize(
    ("throughput", "expected"), [(100, "same"), (90, "regression"), (97, "worse"), (120, "better")]
)
def test_less_throughput_is_worse(throughput: float, expected: str) -> None:
    assert verdict(compared(step(), step(throughput=throughput)), "answers/s") == expected


@given(st.floats(1, 1000), st.floats(1, 1000), st.floats(0.001, 0.5), st.floats(0, 0.5))
def test_a_comparison_and_its_reverse_do_not_both_find_a_regression(
    old: float, new: float, width: float, limit: float
) -> None:
    there = verdict(compared(step(p99=old, width=width), step(p99=new, width=width), limit), "p99 ms")
    back = verdict(compared(step(p99=new, width=width), step(p99=old, width=width), limit), "p99 ms")
    assert (there, back) in {
        ("regression", "better"),
        ("better", "regression"),
        ("worse", "better"),
        ("better", "worse"),
        ("same", "same"),
        ("undecided", "undecided"),
    }


def test_figures_without_intervals_are_undecided() -> None:
    result = compared(bench_reports.step(), bench_reports.step(p99=90))
    assert (verdict(result, "answers/s"), verdict(result, "p95 ms")) == ("undecided", "undecided")
    assert verdict(result, "p99 ms") == "regression"


@pytest.mark.parametrize("name", ["old", "new"])
def test_a_step_that_is_not_valid_is_refused(name: str) -> None:
    invalid = step(p99=99, valid=False, invalid_reasons=("sends were late",))
    steps = (invalid, step()) if name == "old" else (step(), invalid)
    result = compared(*steps)
    assert result.steps[0].refused == f"the {name} one is not valid: sends were late"
    assert not result.steps[0].changes
    assert not result.passed


def test_a_step_without_answers_is_refused() -> None:
    assert compared(step(), step(latency_ms=None)).steps[0].refused == "the new one has no answers"


def test_unstable_and_incomplete_steps_are_compared_with_a_caution() -> None:
    result = compared(step(stable=False, unstable_reason="p50 ms rises"), step(complete=False))
    assert result.steps[0].cautions == ("the old one is not stable: p50 ms rises", "the new one ended early")
    assert result.passed


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0, 100, "regression"), (100, 0, "better"), (10, 12, "undecided"), (1, 0, "undecided"), (0, 1, "undecided")],
)
def test_more_failures_than_chance_explains_are_a_regression(before: int, after: int, expected: str) -> None:
    def failing(count: int) -> Step:
        return step(errors=(Failure(kind="timeout", count=count, example="x"),) if count else ())

    assert verdict(compared(failing(before), failing(after)), "failed") == expected


def test_a_wrong_answer_where_there_was_none_is_a_regression() -> None:
    assert verdict(compared(step(), step(wrong_answers=1)), "wrong answers") == "regression"
    assert verdict(compared(step(wrong_answers=5), step(wrong_answers=5)), "wrong answers") == "undecided"
    assert verdict(compared(step(wrong_answers=500), step()), "wrong answers") == "better"


def test_steps_are_matched_by_kind_and_rate_or_connections() -> None:
    closed = {"kind": "closed", "arrivals": None, "rate": None}
    old = bench_reports.report(step(50), step(100), step(connections=8, **closed), step(connections=4, **closed))
    new = bench_reports.report(
        step(100, connections=30), step(200), step(connections=8, **closed), step(100, arrivals="constant")
    )
    result = compare(old, new, 0.05)
    assert [step.label for step in result.steps] == ["100/s", "8 connections"]
    assert (result.only_old, result.only_new) == (("50/s", "4 connections"), ("200/s", "100/s constant"))


def test_equal_steps_are_matched_in_their_order() -> None:
    result = compare(
        bench_reports.report(step(), step(p99=40)), bench_reports.report(step(), step(p99=40), step()), 0.05
    )
    assert [change.verdict for step in result.steps for change in step.changes if change.figure == "p99 ms"] == [
        "same"
    ] * 2
    assert result.only_new == ("100/s",)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(200.0, 205.0, "same"), (150.0, 155.0, "regression"), (195.0, 199.0, "worse"), (300.0, 310.0, "better")],
)
def test_limits_are_compared_by_the_rates_that_held_and_those_that_did_not(
    low: float, high: float, expected: str
) -> None:
    def found(low: float, high: float) -> Report:
        limit = Limit(rate=low, interval=(low, high), reason="requests in flight grow")
        return replace(bench_reports.report(step(low)), limit=limit)

    result = compare(found(200.0, 201.0), found(low, high), 0.05)
    (limit,) = [step for step in result.steps if step.label == "limit"]
    assert [change.verdict for change in limit.changes] == [expected]
    assert result.passed == (expected != "regression")


def test_steps_beyond_the_limit_are_not_compared() -> None:
    limit = Limit(rate=200.0, interval=(200.0, 210.0), reason="requests in flight grow")
    report = replace(bench_reports.report(step(100), step(210), step(400)), limit=limit)
    result = compare(report, report, 0.05)
    assert [step.label for step in result.steps] == ["100/s", "limit"]
    assert result.only_old == result.only_new == ()


def test_a_limit_without_an_upper_end_is_undecided_and_one_that_was_not_found_is_refused() -> None:
    held = Limit(rate=200.0, interval=None, reason="no rate saturated the server in 20 steps")
    spoiled = Limit(rate=None, interval=None, reason="the step at 100/s is invalid")
    old = replace(bench_reports.report(), limit=held)
    (step,) = compare(old, old, 0.05).steps
    assert step.changes[0].verdict == "undecided"
    result = compare(old, replace(old, limit=spoiled), 0.05)
    assert result.steps[0].refused == "the new one was not found: the step at 100/s is invalid"
    assert not result.passed
    assert compare(old, replace(old, limit=None), 0.05).steps == ()


def test_reports_without_a_common_step_do_not_pass() -> None:
    assert not compare(bench_reports.report(step(100)), bench_reports.report(step(200)), 0.05).passed


REPORT = bench_reports.report(step())


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (replace(REPORT, machine=replace(REPORT.machine, cores=64)), "a processor with 64 cores"),
        (replace(REPORT, machine=replace(REPORT.machine, flags=("avx2", "amx_tile"))), "only one of them has amx_tile"),
        (replace(REPORT, target=replace(REPORT.target, model="iris")), "the models differ: digits, iris"),
        (replace(REPORT, target=replace(REPORT.target, local=False)), "one server was on the machine of the client"),
        (replace(REPORT, requests=replace(REPORT.requests, count=11)), "the requests differ: 10 of 300 bytes"),
    ],
)
def test_other_machines_models_and_requests_are_not_comparable(other: Report, reason: str) -> None:
    (text,) = compare(REPORT, other, 0.05).not_comparable
    assert reason in text
    assert compare(REPORT, REPORT, 0.05).not_comparable == ()


def test_what_may_explain_a_change_is_listed() -> None:
    other = replace(REPORT, torchmar="0.2.0", target=replace(REPORT.target, model_version="2.0", engine="torchserve"))
    assert compare(REPORT, other, 0.05).differences == (
        "server: builtin before, torchserve now",
        "model version: 1.0 before, 2.0 now",
        "torchmar: 0.1.0 before, 0.2.0 now",
    )


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_share_is_the_published_one(count: int, total: int, low: float, high: float) -> None:
    """Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I, method 3."""
    interval = share_interval(count, total)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_the_interval_of_a_difference_is_the_published_one() -> None:
    """Newcombe, Interval estimation for the difference, 1998, table II (a): 56 of 70 and 48 of 80, method 10."""
    interval = difference_interval(share_interval(56, 70), share_interval(48, 80))
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
