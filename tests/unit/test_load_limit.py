"""The search for the highest rate; the server is a calculation, so that its limit is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support import bench_reports
from torchmar.load import limit
from torchmar.load.results import Failure, Step, Window

_LENGTH_S = 0.5


def _windows(rate: float, capacity: float, count: int = 20, noise: float = 0.0) -> tuple[Window, ...]:
    """Return the windows of a server that answers ``capacity`` requests a second."""
    windows = []
    queue = 0.0
    for number in range(count):
        queue = max(0.0, queue + (rate - capacity) * _LENGTH_S)
        wobble = noise * ((number * 7919) % 13 - 6)
        in_flight = max(0, round(queue + rate * 0.02 + wobble))
        windows.append(
            Window(
                start_s=number * _LENGTH_S,
                duration_s=_LENGTH_S,
                sent=round(rate * _LENGTH_S),
                completed=round(min(rate, capacity) * _LENGTH_S),
                errors=0,
                in_flight=in_flight,
                p50_ms=1000 * in_flight / capacity,
                p99_ms=2000 * in_flight / capacity,
            )
        )
    return tuple(windows)


def _step(rate: float, capacity: float, **changes: object) -> Step:
    windows = _windows(rate, capacity)
    step = replace(
        bench_reports.step(rate=rate),
        sent=sum(window.sent for window in windows),
        windows=windows,
        duration_s=10.0,
        throughput=min(rate, capacity),
    )
    return replace(step, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("capacity", [80.0, 333.0, 12_345.0])
@pytest.mark.parametrize("start", [0.5, 1.0, 4.0])
def test_the_limit_is_found_from_both_sides(capacity: float, start: float) -> None:
    steps: list[Step] = []
    found = limit.find_limit(lambda rate: _step(rate, capacity), start * capacity, steps)
    assert found.rate is not None
    assert found.interval is not None
    low, high = found.interval
    assert low == found.rate
    assert low <= capacity * 1.03  # 2 % of the requests may wait longer and longer before that is a sign
    assert high >= capacity
    assert high / low <= 1 + limit.PRECISION
    assert len(steps) <= 16
    assert "requests in flight grow" in found.reason or "right answers a second" in found.reason


def test_requests_in_flight_that_only_vary_are_no_saturation() -> None:
    assert limit.saturation(_windows(100, 200, noise=1.5), 100) == ""


def test_growth_is_a_sign_of_saturation_with_its_interval() -> None:
    sign = limit.saturation(_windows(150, 100, noise=1.5), 150)
    assert sign.startswith("requests in flight grow by 50")
    assert sign.endswith("with 99 % confidence)")


def test_few_windows_are_not_judged() -> None:
    assert limit.saturation(_windows(200, 100, count=5), 200) == ""
    assert limit.saturation(_windows(200, 100, count=6), 200) != ""


def test_a_server_that_rejects_requests_does_not_hold_the_rate() -> None:
    failures = (Failure(kind="status 503", count=100, example=""), Failure(kind="timeout", count=1, example=""))
    step = _step(100, 200, errors=failures)
    assert limit.does_not_hold(step) == "10.1% of the requests failed, most with status 503"
    assert limit.does_not_hold(_step(100, 200)) == ""


def test_fewer_right_answers_than_requests_do_not_hold_the_rate() -> None:
    step = _step(100, 200, throughput=80.0, throughput_interval=(78.0, 82.0))
    assert limit.does_not_hold(step) == "80 right answers a second to 100 requests"


def test_a_server_that_holds_no_rate_has_no_limit() -> None:
    failures = (Failure(kind="status 500", count=1000, example=""),)
    steps: list[Step] = []
    found = limit.find_limit(lambda rate: _step(rate, 200, errors=failures, sent=1000), 10, steps)
    assert found.rate is None
    assert found.reason.startswith("no rate holds: 100.0% of the requests failed")


def test_steps_of_few_requests_end_the_search() -> None:
    failures = (Failure(kind="status 500", count=10, example=""),)
    steps: list[Step] = []
    found = limit.find_limit(lambda rate: _step(rate, 200, errors=failures, sent=10), 10, steps)
    assert found.rate is None
    assert len(steps) == 1


_SPOILED = {"valid": False, "invalid_reasons": ("other programs used 1.9 of 2 cores",)}


def test_invalid_steps_at_one_rate_end_the_search() -> None:
    steps: list[Step] = []
    found = limit.find_limit(lambda rate: _step(rate, 100, **(_SPOILED if rate > 60 else {})), 50, steps)
    assert found.rate is None
    assert found.reason == (
        "the step at 75/s is invalid, 3 times in turn: other programs used 1.9 of 2 cores; the server holds 50/s"
    )
    assert len(steps) == 4


def test_a_step_that_was_spoiled_once_is_measured_again() -> None:
    steps: list[Step] = []

    def run(rate: float) -> Step:
        return _step(rate, 100, **(_SPOILED if len(steps) % 3 == 0 else {}))

    found = limit.find_limit(run, 50, steps)
    assert found.rate is not None
    assert found.rate == pytest.approx(100, rel=limit.PRECISION)
    assert len({step.rate for step in steps}) < len(steps)


def test_an_interruption_keeps_the_steps_before() -> None:
    steps: list[Step] = []

    def run(rate: float) -> Step:
        return _step(rate, 1000, complete=len(steps) < 2)

    assert limit.find_limit(run, 10, steps).reason == limit.INTERRUPTED
    assert len(steps) == 3


def test_the_first_rate_is_half_of_the_throughput() -> None:
    assert limit.first_rate(1234.5) == 620
    assert limit.first_rate(0.0) > 0
