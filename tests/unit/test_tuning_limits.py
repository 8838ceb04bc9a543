"""The highest rate of a setting, closed in on by measurements."""

from __future__ import annotations

import math

import pytest

from torchmar.tuning.limits import MOST_RATES, Limit, limit
from torchmar.tuning.space import Setting
from torchmar.tuning.target import Target
from torchmar.tuning.trials import Trial

TARGET = Target(name="p99", seconds=0.05)
SETTING = Setting(workers=1, threads=1, batch_size=1)


def trial(rate: float, latency: float) -> Trial:
    return Trial(
        setting=SETTING,
        rate=rate,
        seconds=3.0,
        requests=1_000,
        latency=latency,
        median=latency / 2,
        throughput=rate,
        failed=0.0,
        predicted=latency,
    )


def test_a_rate_that_was_missed_once_excludes_the_rates_above_it() -> None:
    shown = limit([trial(100, 0.01), trial(140, 0.06), trial(150, 0.04)], SETTING, TARGET)
    assert (shown.kept, shown.missed, shown.rates, shown.known) == (100, 140, 3, False)
    assert shown.share == pytest.approx(0.2)


def test_a_rate_that_was_kept_and_missed_is_near_the_limit() -> None:
    shown = limit([trial(100, 0.01), trial(140, 0.04), trial(140, 0.06)], SETTING, TARGET)
    assert (shown.kept, shown.missed, shown.marginal) == (100, 140, True)
    assert shown.next_rate(120) == pytest.approx(140 / 1.05)


def test_a_limit_is_known_within_five_percent_or_after_eight_rates() -> None:
    assert Limit(kept=100, missed=105, rates=2).known
    assert not Limit(kept=100, missed=106, rates=MOST_RATES - 1).known
    assert Limit(kept=100, missed=math.inf, rates=MOST_RATES).known
    assert not limit([], SETTING, TARGET).known


@pytest.mark.parametrize(
    ("shown", "predicted", "expected"),
    [
        (Limit(kept=0, missed=100, rates=1), 90, 80),
        (Limit(kept=0, missed=100, rates=1), 60, 60),
        (Limit(kept=100, missed=math.inf, rates=1), 130, 130),
        (Limit(kept=100, missed=math.inf, rates=1), 90, 105),
        (Limit(kept=100, missed=math.inf, rates=1), 500, 160),
        (Limit(kept=100, missed=math.inf, rates=1, share=0.5), 90, 115),
        (Limit(kept=100, missed=144, rates=2), 130, 130),
        (Limit(kept=100, missed=144, rates=2), 143, 120),
        (Limit(kept=100, missed=144, rates=2), 80, 120),
    ],
)
def test_the_next_rate_is_predicted_as_far_as_it_is_possible(shown: Limit, predicted: float, expected: float) -> None:
    assert shown.next_rate(predicted) == pytest.approx(expected)
