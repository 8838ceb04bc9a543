"""torchmar.tuning.finalists separates differences of settings from noise."""

from __future__ import annotations

import math
import random

import pytest

from torchmar.tuning.finalists import Measured, finalists, spread
from torchmar.tuning.space import Setting


def measured(workers: int, *milliseconds: float) -> Measured:
    setting = Setting(workers=workers, threads=1, batch_size=1)
    return Measured(setting=setting, latencies=tuple(each / 1000 for each in milliseconds))


def workers(ranked: list[Measured]) -> list[int]:
    return [each.setting.workers for each in ranked]


def test_the_mean_is_that_of_ratios() -> None:
    assert measured(1, 5, 20).mean == pytest.approx(0.010)


def test_without_repetitions_a_tenth_is_assumed_and_every_repetition_counts() -> None:
    assert spread([measured(1, 10), measured(2, 30)]) == pytest.approx(0.1)
    assert spread([measured(1, 10, 10, 10), measured(2, 30, 30, 30)]) == pytest.approx(0.1 * math.sqrt(2 / 6))
    noisy = [measured(number, *(10 * math.exp(0.3 * sign) for sign in (-1, 1, -1, 1))) for number in range(1, 9)]
    assert spread(noisy) == pytest.approx(0.3 * math.sqrt(4 / 3), rel=0.05)


def test_a_clear_difference_leaves_one_setting() -> None:
    assert workers(finalists([measured(3, 10.0, 10.2), measured(1, 20.0, 20.5)])) == [3]


def test_of_equal_settings_near_the_lowest_the_simplest_is_chosen_and_the_others_follow_by_their_means() -> None:
    settings = [measured(4, 9.9, 10.1), measured(2, 10.3, 10.1), measured(1, 11.3, 11.1), measured(3, 10.2, 10.2)]
    # One worker may be as good, but has shown a mean that is more than 5 % above the lowest.
    assert workers(finalists(settings)) == [2, 4, 3, 1]


def test_nothing_measured_leaves_nothing() -> None:
    assert finalists([]) == []


def test_settings_that_are_equal_are_rarely_taken_for_different_ones() -> None:
    random.seed(1)
    alone = 0
    for _ in range(300):
        pair = [measured(number, *(10 * math.exp(random.gauss(0, 0.15)) for _ in range(3))) for number in (1, 2)]
        alone += len(finalists(pair)) == 1
    assert alone < 45
