"""The times when requests are to be sent."""

from __future__ import annotations

import itertools
import statistics

import pytest

from torchmar.load import schedule


def test_constant_arrivals_have_equal_distances() -> None:
    assert list(itertools.islice(schedule.constant(50), 4)) == pytest.approx([0.0, 0.02, 0.04, 0.06])


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    times = list(itertools.islice(schedule.poisson(100), 20_000))
    distances = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert statistics.fmean(distances) == pytest.approx(0.01, rel=0.05)
    assert statistics.stdev(distances) == pytest.approx(0.01, rel=0.05)  # that of an exponential distribution
    assert min(distances) >= 0


def test_equal_seeds_give_equal_times() -> None:
    first, again, other = (list(itertools.islice(schedule.poisson(10, seed), 5)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_rate_gives_the_arrivals_that_are_named() -> None:
    assert next(schedule.at_rate("constant", 10)) == 0
    assert next(schedule.at_rate("poisson", 10, seed=3)) == next(schedule.poisson(10, 3))


def test_recorded_times_begin_with_the_first() -> None:
    assert list(schedule.recorded([100.5, 100.75, 103.0])) == [0.0, 0.25, 2.5]
