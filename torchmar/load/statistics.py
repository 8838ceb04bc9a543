"""Intervals of measured values: throughput, percentiles, slopes and ratios, and the stability of windows.

The methods are deterministic: equal measurements give equal intervals. Latencies of neighbouring requests depend on
each other through the queue of the server, so that intervals for independent requests would be too narrow. Therefore
they are computed from consecutive batches of time (batch means), which hardly depend on each other if the batches are
long compared with the time in which the queue changes. Close to saturation they do depend on each other: from 30
seconds at 80 % of the capacity of a server with exponential service times, the interval of the median contains the true
value in 19 of 20 runs, and that of the 99th percentile in 12 of 20.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

CONFIDENCE = 0.95
#: Number of batches for an interval: more than 30 hardly narrow it and depend more on each other, fewer than 10 make it
#: wide (Schmeiser, Batch Size Effects in the Analysis of Simulation Output, Operations Research 30, 1982).
BATCHES = 10
#: Confidence of a trend; a step has several series, so that 95 % would report chance too often.
TREND_CONFIDENCE = 0.99
TREND_BATCHES = 10
#: Shares of the level that a trend or an outlier has to exceed to matter.
TREND_TOLERANCE = 0.10
OUTLIER_TOLERANCE = 0.25
OUTLIER_DEVIATIONS = 6
MIN_WINDOWS = 5
# : Number of values that a percentile needs beyond it. With fewer, it is random: the number beyond the true percentile
# is
#: binomial, and differs from its mean by more than a third in one measurement of three. Ten is also the usual condition
#: of the normal approximation (Brown, Cai and DasGupta, Interval Estimation for a Binomial Proportion, Statistical
#: Science 16, 2001, section 2). The order statistics around the percentile bound it at any number of values (Hahn and
#: Meeker, Statistical Intervals, 1991, 5.2); with fewer than 368, the 99th has no upper bound with 95 % confidence.
LEAST_BEYOND = 10

T = TypeVar("T")


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether a value is within the interval."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Stability:
    """The result of `stability`: whether windows show one steady state; ``reason`` is empty if they do."""

    stable: bool
    reason: str


def t_probability(t: float, freedom: int) -> float:
    """Return the probability that Student's t is between ``-t`` and ``t``.

    The finite series for whole degrees of freedom, which is exact: Abramowitz and Stegun, Handbook of Mathematical
    Functions, 1964, 26.7.3 and 26.7.4.

    Args:
        t: value of the statistic, at least 0.
        freedom: degrees of freedom, at least 1.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine * cosine
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


@functools.lru_cache(maxsize=256)
def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return the half width of a confidence interval in standard errors: Student's t, both tails.

    Found by bisection of `t_probability`.

    Args:
        freedom: degrees of freedom, at least 1.
        confidence: confidence level, between 0 and 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if freedom < 1 or not 0 < confidence < 1:
        raise ValueError(f"no quantile of t for {freedom} degrees of freedom and a confidence of {confidence}")
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < confidence:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if t_probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def around(value: float, batches: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Return the interval of an estimate from a whole measurement, by the spread of its batches around it.

    This is the method of sectioning: the estimate from all requests is less biased than the mean of the batches'
    estimates, especially for high percentiles (Asmussen and Glynn, Stochastic Simulation, 2007, III.5a; Nakayama,
    Confidence Intervals for Quantiles Using Sectioning, ACM TOMACS 24, 2014).

    Args:
        value: the estimate from all requests, such as the 99th percentile.
        batches: the same estimate from the requests of each batch; NaN for a batch without requests.
        confidence: confidence level, between 0 and 1.

    Returns:
        The interval; its low end is at least 0, because latencies and rates are. None for fewer than two batches.
    """
    usable = [batch for batch in batches if not math.isnan(batch)]
    if len(usable) < 2 or math.isnan(value):
        return None
    freedom = len(usable) - 1
    variance = sum((batch - value) ** 2 for batch in usable) / freedom
    half = t_quantile(freedom, confidence) * math.sqrt(variance / len(usable))
    return Interval(value, max(0.0, value - half), value + half)


def grouped(windows: Sequence[T], groups: int = BATCHES) -> list[Sequence[T]]:
    """Split windows into at most ``groups`` batches of consecutive windows, as equal in length as possible."""
    count = min(groups, len(windows))
    return [windows[len(windows) * k // count : len(windows) * (k + 1) // count] for k in range(count)]


def slope_interval(x: Sequence[float], y: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Return the slope of the least-squares line and its interval by Student's t.

    The standard error is that of simple linear regression (Draper and Smith, Applied Regression Analysis, 1998, 1.4).

    Args:
        x: values, as many as in ``y``, such as seconds.
        y: the values at ``x``.
        confidence: confidence level, between 0 and 1.

    Returns:
        The change of y for a change of 1 in x; None for fewer than three points, or if all x are equal.
    """
    count = len(x)
    if count != len(y):
        raise ValueError(f"{count} values of x, {len(y)} of y")
    if count < 3:
        return None
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    spread = sum((value - mean_x) ** 2 for value in x)
    if not spread:
        return None
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    residuals = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    half = t_quantile(count - 2, confidence) * math.sqrt(residuals / (count - 2) / spread)
    return Interval(slope, slope - half, slope + half)


def ratio_interval(new: Interval, old: Interval) -> Interval:
    """Return the ratio of two independent estimates with its interval, computed only from their own intervals.

    The method of variance estimates recovery for a difference, applied to logarithms: it needs no symmetric intervals
    (Zou and Donner, Construction of Confidence Limits about Effect Measures, Statistics in Medicine 27, 2008).

    Args:
        new: the numerator; all parts at least 0.
        old: the denominator; its value above 0.

    Returns:
        The interval; if an end of the two is 0, its low end is 0 or its high end infinity.
    """
    if new.value < 0 or old.value <= 0:
        raise ValueError(f"no ratio of {new.value} to {old.value}")
    if not new.value:
        return Interval(0.0, 0.0, math.inf if new.high > 0 else 0.0)
    ratio = new.value / old.value
    down = math.hypot(_log(new.value, new.low), _log(old.high, old.value))
    up = math.hypot(_log(new.high, new.value), _log(old.value, old.low))
    return Interval(ratio, ratio * math.exp(-down), ratio * math.exp(up) if up < 700 else math.inf)


def _log(larger: float, smaller: float) -> float:
    return math.log(larger / smaller) if smaller > 0 else math.inf


def share_interval(count: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the share of requests with its interval, which is also correct for small shares and for 0.

    Wilson's score interval (Probable Inference, JASA 22, 1927; Brown, Cai and DasGupta, Interval Estimation for a
    Binomial Proportion, Statistical Science 16, 2001).

    Args:
        count: number of requests that failed.
        total: number of all requests, at least 1.
        confidence: confidence level, between 0 and 1.
    """
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share = count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # The ends are exactly 0 and 1 in these cases; rounding would give slightly other numbers.
    return Interval(share, middle - half if count else 0.0, middle + half if count < total else 1.0)


def least_count(percent: float) -> int:
    """Return the number of values that a percentile needs for `LEAST_BEYOND` values beyond it: 1,000 for the 99th.

    Args:
        percent: percentile, above 0 and below 100.
    """
    return math.ceil(LEAST_BEYOND / (1 - percent / 100) - 1e-6)  # binary numbers cannot represent 99.9 percent


def difference_interval(new: Interval, old: Interval) -> Interval:
    """Return the difference of two independent estimates with its interval, computed only from their own intervals.

    Newcombe, Interval Estimation for the Difference between Independent Proportions, Statistics in Medicine 17, 1998,
    method 10, which is the method of variance estimates recovery.
    """
    difference = new.value - old.value
    return Interval(
        difference,
        difference - math.hypot(new.value - new.low, old.high - old.value),
        difference + math.hypot(new.high - new.value, old.value - old.low),
    )


def stability(series: Mapping[str, Sequence[float]], window_s: float) -> Stability:
    """Return whether the windows of a measurement show one steady state, and if not, the reason.

    Logarithms of the values are examined, because latencies of a busy server differ by factors: a window with twice the
    median is as likely as one with half of it. A series is not steady if

    - a window is further from the median than chance explains: by more than `OUTLIER_DEVIATIONS` standard deviations,
      estimated from the median absolute deviation, and more than `OUTLIER_TOLERANCE`; or
    - its least-squares line changes by more than `TREND_TOLERANCE` over the measurement, with `TREND_CONFIDENCE`. The
      line is that of at most `TREND_BATCHES` batches of windows, which depend on each other less than windows do.

    Args:
        series: values of the windows, by name with unit, such as ``"p50 ms"``; NaN for a window without requests.
            A window should have 20 requests or more; otherwise windows differ by chance.
        window_s: the length of a window in seconds.
    """
    reasons = []
    for name, values in series.items():
        if len(values) < MIN_WINDOWS:
            return Stability(False, f"{len(values)} windows are too few to judge, {MIN_WINDOWS} are needed")
        reason = _gaps(name, values) or _outliers(name, values, window_s) or _trend(name, values, window_s)
        if reason:
            reasons.append(reason)
    return Stability(not reasons, "; ".join(reasons))


def _gaps(name: str, values: Sequence[float]) -> str:
    empty = sum(not value > 0 for value in values)  # NaN is not above 0 either
    return f"{name}: {empty} of {len(values)} windows without a completed request" if empty else ""


def _outliers(name: str, values: Sequence[float], window_s: float) -> str:
    median = statistics.median(values)
    distances = [abs(math.log(value / median)) for value in values]
    # 1.4826 times the median absolute deviation estimates the standard deviation of normal values.
    limit = max(OUTLIER_DEVIATIONS * 1.4826 * statistics.median(distances), math.log1p(OUTLIER_TOLERANCE))
    outliers = [index for index, distance in enumerate(distances) if distance > limit]
    if not outliers:
        return ""
    worst = max(outliers, key=distances.__getitem__)
    others = len(outliers) - 1
    more = f" ({others} more {'window' if others == 1 else 'windows'} like it)" if others else ""
    return f"{name} is {_short(values[worst])} at {worst * window_s:.4g} s{more}, its median {_short(median)}"


def _trend(name: str, values: Sequence[float], window_s: float) -> str:
    batches = grouped([(index * window_s, math.log(value)) for index, value in enumerate(values)], TREND_BATCHES)
    x = [statistics.fmean(second for second, _ in batch) for batch in batches]
    y = [statistics.fmean(logarithm for _, logarithm in batch) for batch in batches]
    slope = slope_interval(x, y, TREND_CONFIDENCE)
    length = window_s * (len(values) - 1)
    if slope is None or slope.contains(0) or abs(slope.value) * length <= math.log1p(TREND_TOLERANCE):
        return ""
    start, end = (math.exp(statistics.fmean(y) + sign * slope.value * length / 2) for sign in (-1, 1))
    return f"{name} {'rises' if end > start else 'falls'} from about {_short(start)} to {_short(end)} in {length:.4g} s"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
