"""torchmar.load.statistics: intervals contain the true value as often as they should; unsteady windows are named."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchmar.load.histogram import Histogram
from torchmar.load.statistics import (
    Interval,
    around,
    grouped,
    ratio_interval,
    slope_interval,
    stability,
    t_probability,
    t_quantile,
)

#: Two-sided quantiles of 95 % and 99 %: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
PUBLISHED = {
    1: (12.706, 63.657),
    2: (4.303, 9.925),
    3: (3.182, 5.841),
    4: (2.776, 4.604),
    5: (2.571, 4.032),
    6: (2.447, 3.707),
    9: (2.262, 3.250),
    10: (2.228, 3.169),
    15: (2.131, 2.947),
    20: (2.086, 2.845),
    29: (2.045, 2.756),
    60: (2.000, 2.660),
    100: (1.984, 2.626),
}
POSITIVE = st.floats(1e-3, 1e6)


@pytest.mark.parametrize("freedom", PUBLISHED)
def test_quantiles_of_t_are_the_published_ones(freedom: int) -> None:
    quantiles = [round(t_quantile(freedom, confidence), 3) for confidence in (0.95, 0.99)]
    assert quantiles == pytest.approx(list(PUBLISHED[freedom]), abs=0.0011)


@given(st.integers(1, 300), st.floats(0.01, 0.999))
def test_the_quantile_has_its_probability(freedom: int, confidence: float) -> None:
    assert t_probability(t_quantile(freedom, confidence), freedom) == pytest.approx(confidence, abs=1e-9)


@pytest.mark.parametrize(("freedom", "confidence"), [(0, 0.95), (5, 0), (5, 1)])
def test_quantiles_that_do_not_exist_are_refused(freedom: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        t_quantile(freedom, confidence)


def test_the_interval_of_a_mean_contains_it_in_19_of_20_measurements() -> None:
    generator = random.Random(1)
    batches = ([generator.gauss(50, 7) for _ in range(10)] for _ in range(2000))
    intervals = [around(statistics.fmean(values), values) for values in batches]
    assert sum(interval is not None and interval.contains(50) for interval in intervals) == pytest.approx(1900, abs=40)


@given(st.lists(POSITIVE, min_size=2, max_size=30))
def test_an_interval_is_around_its_value_and_grows_with_confidence(values: list[float]) -> None:
    mean = statistics.fmean(values)
    narrow, wide = around(mean, values, 0.8), around(mean, values, 0.99)
    assert narrow and wide
    assert 0 <= wide.low <= narrow.low <= narrow.value * (1 + 1e-9)
    assert narrow.value <= narrow.high * (1 + 1e-9) <= wide.high * (1 + 2e-9)


def test_less_than_two_batches_have_no_interval() -> None:
    assert around(1.0, [1.0]) is None
    assert around(1.0, []) is None
    assert around(1.0, [1.0, math.nan]) is None
    assert around(math.nan, [1.0, 2.0]) is None


def test_a_batch_without_requests_is_left_out() -> None:
    assert around(2.0, [1.0, math.nan, 3.0]) == around(2.0, [1.0, 3.0])


def test_the_interval_of_a_percentile_from_batches_contains_it_in_19_of_20_measurements() -> None:
    """Independent exponential latencies with a mean of 20 ms, 500 in each of 10 batches."""
    generator = random.Random(2)
    contained = {50: 0, 99: 0}
    for _ in range(20):
        batches = [Histogram(int(generator.expovariate(1 / 20_000)) for _ in range(500)) for _ in range(10)]
        for percent in contained:
            value = Histogram.merged(batches).percentile(percent)
            interval = around(value, [batch.percentile(percent) for batch in batches])
            contained[percent] += interval is not None and interval.contains(-20_000 * math.log(1 - percent / 100))
    assert min(contained.values()) >= 17, contained


@given(st.lists(st.integers(), max_size=50), st.integers(1, 12))
def test_groups_are_consecutive_of_equal_length_and_complete(windows: list[int], groups: int) -> None:
    batches = grouped(windows, groups)
    assert [window for batch in batches for window in batch] == windows
    assert len(batches) == min(groups, len(windows))
    assert not batches or max(map(len, batches)) - min(map(len, batches)) <= 1


@given(st.floats(-100, 100), st.floats(-100, 100), st.integers(3, 30))
def test_the_slope_of_a_line_is_exact(slope: float, start: float, count: int) -> None:
    interval = slope_interval(range(count), [start + slope * x for x in range(count)])
    assert interval
    assert interval.value == pytest.approx(slope, abs=1e-9)
    assert interval.high - interval.low == pytest.approx(0, abs=1e-6)


def test_the_interval_of_a_slope_contains_it_in_19_of_20_measurements() -> None:
    generator = random.Random(3)
    intervals = [slope_interval(range(12), [2 * x + generator.gauss(0, 5) for x in range(12)]) for _ in range(2000)]
    assert sum(interval is not None and interval.contains(2) for interval in intervals) == pytest.approx(1900, abs=40)


def test_points_without_a_line_have_no_slope() -> None:
    assert slope_interval([1, 2], [1, 2]) is None
    assert slope_interval([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="3 values of x, 2 of y"):
        slope_interval([1, 2, 3], [1, 2])


@given(POSITIVE, POSITIVE, st.floats(0.01, 0.9), st.floats(0.01, 0.9))
def test_the_interval_of_a_ratio_contains_it_and_the_inverse_is_the_inverse(
    new: float, old: float, new_share: float, old_share: float
) -> None:
    numerator = Interval(new, new * (1 - new_share), new * (1 + new_share))
    denominator = Interval(old, old * (1 - old_share), old * (1 + old_share))
    ratio, inverse = ratio_interval(numerator, denominator), ratio_interval(denominator, numerator)
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.value == pytest.approx(new / old)
    assert (inverse.low, inverse.high) == (pytest.approx(1 / ratio.high), pytest.approx(1 / ratio.low))


def test_the_interval_of_a_ratio_contains_it_in_19_of_20_measurements() -> None:
    generator = random.Random(4)

    def measured(mean: float) -> Interval:
        values = [generator.gauss(mean, mean / 10) for _ in range(10)]
        interval = around(statistics.fmean(values), values)
        assert interval
        return interval

    contained = sum(ratio_interval(measured(33), measured(30)).contains(1.1) for _ in range(2000))
    assert contained == pytest.approx(1900, abs=50)


def test_the_ratio_of_intervals_that_reach_0_is_open_on_that_side() -> None:
    assert ratio_interval(Interval(2, 0, 4), Interval(1, 0.5, 1.5)).low == 0
    assert ratio_interval(Interval(2, 1, 4), Interval(1, 0, 2)).high == math.inf
    assert ratio_interval(Interval(0, 0, 1), Interval(1, 1, 1)) == Interval(0, 0, math.inf)
    with pytest.raises(ValueError, match="no ratio"):
        ratio_interval(Interval(1, 1, 1), Interval(0, 0, 0))


def queue_windows(generator: random.Random, rate: float, capacity: float) -> list[Histogram]:
    """Return the latencies of 30 windows of a second at a server with one worker and exponential service times."""
    windows = [Histogram() for _ in range(30)]
    now = free = 0.0
    while (now := now + generator.expovariate(rate)) < 30:
        free = max(free, now) + generator.expovariate(capacity)
        windows[int(now)].record(int((free - now) * 1e6))
    return windows


def judged(windows: list[Histogram]) -> str:
    series = {
        "requests/s": [float(window.count) for window in windows],
        "p50 ms": [window.percentile(50) / 1000 for window in windows],
    }
    result = stability(series, 1.0)
    assert result.stable == (not result.reason)
    return result.reason


@pytest.mark.parametrize("rate", [20, 50, 80])
def test_a_queue_in_a_steady_state_is_stable_in_at_least_9_of_10_measurements(rate: float) -> None:
    generator = random.Random(5)
    assert sum(not judged(queue_windows(generator, rate, 100)) for _ in range(30)) >= 27


def test_a_queue_that_grows_is_not_stable() -> None:
    generator = random.Random(6)
    for _ in range(20):
        assert "p50 ms" in judged(queue_windows(generator, 130, 100))


def test_a_stall_is_named_with_its_time() -> None:
    values = [20.0 + index % 3 for index in range(20)]
    values[7], values[8] = 1500.0, 600.0
    result = stability({"p50 ms": values}, 0.5)
    assert result.reason == "p50 ms is 1,500 at 3.5 s (1 more window like it), its median 21"


def test_a_slow_rise_is_named_with_its_ends() -> None:
    result = stability({"p50 ms": [20 * 1.02**index for index in range(30)]}, 1.0)
    assert result.reason == "p50 ms rises from about 20 to 35.5 in 29 s"
    assert stability({"p50 ms": [20 * 1.002**index for index in range(30)]}, 1.0).stable


def test_windows_without_requests_and_too_few_windows_are_not_stable() -> None:
    assert stability({"p50 ms": [20.0, math.nan, 20, 20, 20, 0]}, 1.0).reason.startswith("p50 ms: 2 of 6 windows")
    assert stability({"p50 ms": [20.0] * 4}, 1.0).reason == "4 windows are too few to judge, 5 are needed"


def test_every_unsteady_series_is_named() -> None:
    reason = stability({"a": [1.0] * 9 + [9.0], "b": [1.0] * 10, "c": [2.0] * 9 + [7.0]}, 1.0).reason
    assert reason == "a is 9 at 9 s, its median 1; c is 7 at 9 s, its median 2"
