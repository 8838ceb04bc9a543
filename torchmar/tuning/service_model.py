"""The time of a batch against its size: a fixed part and a part for each request, with the measured noise."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

MISFIT = 0.1  # relative distance from a measured mean above which the line is replaced by the measured means


@dataclass(frozen=True, kw_only=True)
class BatchTimes:
    """Measured batches of one size.

    Attributes:
        size: requests in each batch.
        seconds: wall-clock time of each batch.
        cpu_seconds: mean CPU time of a batch over all threads; None: not measured, one thread is assumed.
    """

    size: int
    seconds: tuple[float, ...]
    cpu_seconds: float | None = None

    @property
    def mean(self) -> float:
        """Mean time of a batch, in seconds."""
        return fmean(self.seconds)

    @property
    def cores(self) -> float:
        """Mean number of cores that a batch uses."""
        return 1.0 if self.cpu_seconds is None else max(0.05, self.cpu_seconds / self.mean)


@dataclass(frozen=True, kw_only=True)
class ServiceModel:
    """The time of a batch against its size.

    Attributes:
        fixed: seconds of a batch that do not depend on its size.
        per_request: seconds that each request adds.
        measured: the batches that the model was fitted to, by size.
        misfit: the largest relative distance of the line from a measured mean. Above `MISFIT`, times between
            measured sizes are interpolated, and ``fixed`` and ``per_request`` only describe the curve.
        scale: factor of all times; trials correct it.
    """

    fixed: float
    per_request: float
    measured: tuple[BatchTimes, ...] = ()
    misfit: float = 0.0
    scale: float = 1.0

    @property
    def linear(self) -> bool:
        """Whether times follow the line."""
        return self.misfit <= MISFIT

    def scaled(self, factor: float) -> ServiceModel:
        """Return the model with all times multiplied by a factor."""
        return replace(self, scale=self.scale * factor)

    def mean(self, size: int) -> float:
        """Return the mean time of a batch of ``size`` requests, in seconds."""
        return self.scale * (self.fixed + self.per_request * size if self.linear else self._interpolated(size))

    def cores(self, size: int) -> float:
        """Return the mean number of cores that a batch uses; 1 if this was not measured."""
        return self._nearest(size).cores if self.measured else 1.0

    def times(self, size: int) -> tuple[float, ...]:
        """Return equally likely times of a batch: the mean, with the noise of the nearest measured size."""
        mean = self.mean(size)
        if not self.measured:
            return (mean,)
        nearest = self._nearest(size)
        factor = mean / nearest.mean
        return tuple(seconds * factor for seconds in nearest.seconds)

    def _nearest(self, size: int) -> BatchTimes:
        return min(self.measured, key=lambda times: (max(times.size, size) / min(times.size, size), times.size))

    def _interpolated(self, size: int) -> float:
        points = [(times.size, times.mean) for times in self.measured]
        if len(points) == 1:
            return points[0][1] * (size / points[0][0] if size > points[0][0] else 1.0)
        index = min(max(1, bisect.bisect_left(points, (size, 0.0))), len(points) - 1)
        (low, low_mean), (high, high_mean) = points[index - 1], points[index]
        value = low_mean + (high_mean - low_mean) * (size - low) / (high - low)
        return value if low <= size <= high else max(value, low_mean if size < low else high_mean)


def fit(measured: Sequence[BatchTimes]) -> ServiceModel:
    """Fit ``fixed + per_request * size`` to measured batches, by least squares of relative errors.

    Args:
        measured: batches of different sizes; at least one size, with at least one batch each.

    Returns:
        The model; both parts are zero or positive. A single size gives a model without a fixed part.
    """
    ordered = tuple(sorted(measured, key=lambda times: times.size))
    points = [(times.size, times.mean) for times in ordered]
    fixed, per_request = _line(points)
    misfit = max(abs(fixed + per_request * size - mean) / mean for size, mean in points)
    return ServiceModel(fixed=fixed, per_request=per_request, measured=ordered, misfit=misfit)


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return intercept and slope, neither of them negative, of the line with the least squares of relative errors."""
    # Weights of 1 / mean**2; sums of weight, weight * x and so on.
    weights = [mean**-2 for _, mean in points]
    total = sum(weights)
    x = sum(weight * size for weight, (size, _) in zip(weights, points, strict=True))
    y = sum(weight * mean for weight, (_, mean) in zip(weights, points, strict=True))
    xx = sum(weight * size * size for weight, (size, _) in zip(weights, points, strict=True))
    xy = sum(weight * size * mean for weight, (size, mean) in zip(weights, points, strict=True))
    determinant = total * xx - x * x
    if len(points) > 1 and determinant > 1e-12 * total * xx:
        slope = (total * xy - x * y) / determinant
        intercept = (y - slope * x) / total
        if slope >= 0 and intercept >= 0:
            return intercept, slope
        if slope < 0:
            return y / total, 0.0
    return 0.0, xy / xx
