"""Targets, times and sizes as users write them."""

from __future__ import annotations

import pytest

from torchmar.errors import TorchmarError
from torchmar.tuning.target import Target, parse_duration, parse_target


@pytest.mark.parametrize(
    ("text", "name", "seconds", "percent"),
    [
        ("p99<50ms", "p99", 0.05, 99.0),
        ("P999 <= 1.5s", "p999", 1.5, 99.9),
        ("mean<800us", "mean", 0.0008, None),
    ],
)
def test_a_target_is_a_statistic_and_a_time(text: str, name: str, seconds: float, percent: float | None) -> None:
    target = parse_target(text)
    assert (target.name, target.percent) == (name, percent)
    assert target.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "50ms", "p98<50ms", "p99<50", "p99>50ms", "p99<0ms", "p99<-1ms", "p99<50ms "[:-3]]
)
def test_anything_else_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(TorchmarError, match="no latency target") as caught:
        parse_target(text)
    assert "p99<50ms" in caught.value.hint


def test_a_target_is_shown_in_milliseconds() -> None:
    assert str(Target(name="p99", seconds=0.05)) == "p99 < 50.0 ms"


def test_durations_have_units() -> None:
    assert [parse_duration(text) for text in ("90", "90s", "5m", "1.5h", "500ms")] == [90, 90, 300, 5400, 0.5]
    with pytest.raises(TorchmarError, match="no time"):
        parse_duration("soon")


@pytest.mark.parametrize(
    ("text", "requests", "name"),
    [
        ("p99<50ms", 1_000, "p99"),
        ("p99<50ms", 999, "p95"),
        ("p99<50ms", 72, "p50"),
        ("p999<50ms", 1_200, "p99"),
        ("p99<50ms", 5, "p50"),
        ("p50<50ms", 5, "p50"),
        ("mean<50ms", 5, "mean"),
    ],
)
def test_settings_are_compared_by_the_highest_percentile_that_requests_show(
    text: str, requests: int, name: str
) -> None:
    target = parse_target(text)
    assert target.comparable(requests) == Target(name=name, seconds=target.seconds)
