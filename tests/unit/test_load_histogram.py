"""torchmar.load.histogram keeps three significant digits of every value, whatever the range."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchmar.load.histogram import Histogram, bucket_index, bucket_range

HOURS = 10 * 3600 * 10**6
VALUES = st.lists(st.one_of(st.integers(0, 3000), st.integers(0, 10**6), st.integers(0, HOURS)), max_size=200)
PERCENTS = st.one_of(st.floats(0, 100), st.sampled_from([0, 50, 90, 95, 99, 99.9, 99.99, 100]))


def exact(values: list[int], percent: float) -> int:
    """Return the nearest-rank percentile of sorted values."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values) - 1e-9) - 1)]


@given(st.integers(0, 10 * HOURS))
def test_a_value_is_within_its_bucket_which_is_narrower_than_a_thousandth(value: int) -> None:
    lowest, highest = bucket_range(bucket_index(value))
    assert lowest <= value <= highest
    assert highest - lowest <= lowest / 1000


@given(st.integers(0, 100_000))
def test_buckets_are_adjacent(index: int) -> None:
    lowest, highest = bucket_range(index)
    assert bucket_index(lowest) == bucket_index(highest) == index
    assert bucket_index(highest + 1) == index + 1


@given(VALUES.filter(len), PERCENTS)
def test_a_percentile_is_the_exact_one_or_at_most_a_thousandth_above(values: list[int], percent: float) -> None:
    result = Histogram(values).percentile(percent)
    assert exact(values, percent) <= result <= exact(values, percent) * 1.001


@given(VALUES.filter(len))
def test_count_sum_mean_and_largest_value_are_exact(values: list[int]) -> None:
    histogram = Histogram(values)
    assert (histogram.count, histogram.sum, histogram.max) == (len(values), sum(values), max(values))
    assert histogram.mean == sum(values) / len(values)
    assert histogram.percentile(100) == max(values)


@given(VALUES, VALUES)
def test_merged_histograms_equal_the_histogram_of_all_values(first: list[int], second: list[int]) -> None:
    histograms = [Histogram(first), Histogram(second)]
    assert Histogram.merged(histograms) == Histogram(first + second)
    assert histograms[0] == Histogram(first)


@given(st.integers(0, HOURS), st.integers(0, 1000))
def test_recording_a_value_with_a_count_is_recording_it_so_often(value: int, count: int) -> None:
    histogram = Histogram()
    histogram.record(value, count)
    assert histogram == Histogram([value] * count)


@given(VALUES)
def test_json_keeps_everything(values: list[int]) -> None:
    histogram = Histogram(values)
    assert Histogram.from_json(json.loads(json.dumps(histogram.to_json()))) == histogram


def test_percentiles_may_be_in_any_order_and_repeated() -> None:
    histogram = Histogram(range(1, 1001))
    assert histogram.percentiles((99.9, 50, 99, 50, 0)) == (999, 500, 990, 500, 1)


def test_a_histogram_without_values_has_no_percentiles() -> None:
    histogram = Histogram()
    assert all(math.isnan(value) for value in (*histogram.percentiles((0, 50, 100)), histogram.mean))
    assert (histogram.count, histogram.max, histogram.sum) == (0, 0, 0)


@pytest.mark.parametrize(("value", "count"), [(-1, 1), (1, -1)])
def test_negative_values_and_counts_are_refused_and_change_nothing(value: int, count: int) -> None:
    histogram = Histogram([5])
    with pytest.raises(ValueError, match="negative"):
        histogram.record(value, count)
    assert histogram == Histogram([5])


@pytest.mark.parametrize("percent", [-0.1, 100.1, math.nan])
def test_a_percentile_outside_of_0_to_100_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        Histogram([5]).percentile(percent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "ms"}, "unit 'ms'"),
        ({"significant_digits": 2}, "2 digits"),
        ({"count": 7}, "contradict its count"),
        ({"max": 9}, "contradict its largest value"),
        ({"max": 10**6}, "contradict its largest value"),
        ({"buckets": [[5000, 3], [-1, 0]]}, "contradict"),
        ({"buckets": "x"}, "not a histogram"),
        ({"sum": None}, "not a histogram"),
    ],
)
def test_a_document_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    document = Histogram([10, 20, 20_000]).to_json()
    with pytest.raises(ValueError, match=message):
        Histogram.from_json({**document, **change})
    del document["count"]
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_json(document)
