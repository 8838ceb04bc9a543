"""A log-linear histogram of latencies: three significant digits over any range, in the memory of its buckets.

The buckets are those of HdrHistogram with three significant digits and a lowest value of 1 (Gil Tene,
https://github.com/HdrHistogram/HdrHistogram): values below 2,048 have a bucket each, and every doubling above has 1,024
buckets of equal width. A bucket is thus narrower than a thousandth of its values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

UNIT = "us"
SIGNIFICANT_DIGITS = 3
_BITS = 11  # 2 ** 11 is the first power of two of at least 2 * 10 ** 3
_HALF = 1 << (_BITS - 1)


def bucket_index(value: int) -> int:
    """Return the index of the bucket that a value of at least 0 is in."""
    shift = value.bit_length() - _BITS
    return value if shift <= 0 else shift * _HALF + (value >> shift)


def bucket_range(index: int) -> tuple[int, int]:
    """Return the lowest and the highest value of a bucket."""
    shift = max(0, index // _HALF - 1)
    lowest = (index - shift * _HALF) << shift
    return lowest, lowest + (1 << shift) - 1


class Histogram:
    """Counts of values in microseconds, with the exact largest value and the exact sum.

    Attributes:
        count: the number of values.
        max: the largest value in microseconds; 0 without values.
        sum: sum of all values, in microseconds.
    """

    __slots__ = ("_counts", "count", "max", "sum")

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.max = 0
        self.sum = 0
        for value in values:
            self.record(value)

    def record(self, value: int, count: int = 1) -> None:
        """Count a value.

        Args:
            value: value in whole microseconds.
            count: number of its occurrences.

        Raises:
            ValueError: the value or the count is negative.
        """
        # The body of bucket_index is repeated here: a call for each request would take 50 % longer.
        shift = value.bit_length() - 11
        index = value if shift <= 0 else (shift << 10) + (value >> shift)
        if value < 0 or count < 0:
            raise ValueError(f"a value of {value} us, {count} times: neither may be negative")
        if not count:
            return
        counts = self._counts
        counts[index] = counts.get(index, 0) + count
        self.count += count
        self.sum += value * count
        if value > self.max:
            self.max = value

    def merge(self, other: Histogram) -> None:
        """Add the values of another histogram."""
        counts = self._counts
        for index, count in other._counts.items():
            counts[index] = counts.get(index, 0) + count
        self.count += other.count
        self.sum += other.sum
        self.max = max(self.max, other.max)

    @classmethod
    def merged(cls, histograms: Iterable[Histogram]) -> Histogram:
        """Return a new histogram with the values of all."""
        result = cls()
        for histogram in histograms:
            result.merge(histogram)
        return result

    @property
    def mean(self) -> float:
        """The exact mean in microseconds; NaN without values."""
        return self.sum / self.count if self.count else math.nan

    def percentile(self, percent: float) -> float:
        """Return the smallest value that at least ``percent`` of the values do not exceed (nearest rank).

        Args:
            percent: 0 to 100; 99.9 is the 99.9th percentile.

        Returns:
            Microseconds: the highest value of the bucket. It is never below the exact percentile, and at most a
            thousandth above it; the 100th percentile is exact. NaN without values.

        Raises:
            ValueError: ``percent`` is not between 0 and 100.
        """
        return self.percentiles((percent,))[0]

    def percentiles(self, percents: Sequence[float]) -> tuple[float, ...]:
        """Return several percentiles, as `percentile` does, in one pass."""
        for percent in percents:
            if not 0 <= percent <= 100:
                raise ValueError(f"a percentile is between 0 and 100, not {percent}")
        if not self.count:
            return tuple(math.nan for _ in percents)
        # The tolerance is for shares that binary numbers cannot represent: 99.9 percent of 1,000 is 999.0000000000001.
        ranks = [max(1, math.ceil(percent / 100 * self.count - 1e-9)) for percent in percents]
        results = [0.0] * len(ranks)
        order = iter(sorted(range(len(ranks)), key=ranks.__getitem__))
        position = next(order, None)
        below = 0
        for index, count in sorted(self._counts.items()):
            below += count
            while position is not None and ranks[position] <= below:
                results[position] = float(min(bucket_range(index)[1], self.max))
                position = next(order, None)
        return tuple(results)

    def count_below(self, value: int) -> int:
        """Return the number of values below one, in microseconds, without the values in its bucket."""
        limit = bucket_index(max(0, value))
        return sum(count for index, count in self._counts.items() if index < limit)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return (self._counts, self.max, self.sum) == (other._counts, other.max, other.sum)

    __hash__ = None  # type: ignore[assignment]  # a mutable value

    def __repr__(self) -> str:
        p50, p99 = self.percentiles((50, 99))
        return f"Histogram({self.count} values, p50 {p50:.0f} us, p99 {p99:.0f} us, max {self.max} us)"

    def to_json(self) -> dict[str, Any]:
        """Return the histogram as JSON values: ``[index, count]`` of each bucket, in ascending order."""
        return {
            "unit": UNIT,
            "significant_digits": SIGNIFICANT_DIGITS,
            "count": self.count,
            "sum": self.sum,
            "max": self.max,
            "buckets": [list(pair) for pair in sorted(self._counts.items())],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Histogram:
        """Return the histogram from the values of `to_json`.

        Raises:
            ValueError: the document is not that of a histogram, or contradicts itself.
        """
        try:
            form = (document["unit"], document["significant_digits"])
            buckets = {int(index): int(count) for index, count in document["buckets"]}
            result = cls()
            result.count, result.sum, result.max = (int(document[key]) for key in ("count", "sum", "max"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a histogram: {type(error).__name__}: {error}") from None
        if form != (UNIT, SIGNIFICANT_DIGITS):
            raise ValueError(f"a histogram with the unit {form[0]!r} and {form[1]!r} digits; {UNIT!r} and 3 are known")
        if any(index < 0 or count < 1 for index, count in buckets.items()) or sum(buckets.values()) != result.count:
            raise ValueError("the buckets of a histogram contradict its count")
        if result.count and bucket_index(max(0, result.max)) != max(buckets):
            raise ValueError("the buckets of a histogram contradict its largest value")
        result._counts = buckets
        return result
