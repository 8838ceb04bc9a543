"""The best measured settings compared: their mean latencies, and whether the differences are more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from torchmar.tuning.space import Setting

# The assumed relative standard deviation of a measurement before any is repeated, and the number of repetitions that
# this assumption counts as: the deviation of a few real repetitions alone would often be far too high or too low.
_SPREAD, _WEIGHT = 0.1, 2
_CERTAIN = 2.0  # a difference of more standard errors is not noise, with 95 % confidence
_NEAR = 0.05  # relative difference from the lowest mean up to which the simplest of the equal settings is chosen


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A setting and the latencies of its measurements at one rate, in seconds."""

    setting: Setting
    latencies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The geometric mean: twice and half the latency are equally far from it."""
        return math.exp(fmean(map(math.log, self.latencies)))


def spread(measured: Sequence[Measured]) -> float:
    """Return the relative standard deviation of one measurement, estimated from all settings together.

    It is the deviation of logarithms, pooled over the settings and over `_WEIGHT` assumed repetitions, as by an inverse
    chi-squared prior (Gelman et al., Bayesian Data Analysis, 3rd edition, 2.6).
    """
    squares, freedom = _WEIGHT * _SPREAD**2, _WEIGHT
    for measurement in measured:
        mean = math.log(measurement.mean)
        squares += sum((math.log(latency) - mean) ** 2 for latency in measurement.latencies)
        freedom += len(measurement.latencies) - 1
    return math.sqrt(squares / freedom)


def finalists(measured: Sequence[Measured]) -> list[Measured]:
    """Return the choice, then the settings whose difference from the lowest mean may be noise.

    The choice is the simplest of the settings that are also near the lowest mean: that with the fewest processes, then
    with the smallest batches, threads and delay. The others are in the order of their means.

    Args:
        measured: settings that meet the target. They should be measured in turn, so that a change of the machine
            affects all of them.
    """
    if not measured:
        return []
    deviation = spread(measured)
    lowest = min(measured, key=lambda candidate: candidate.mean)

    def noise(candidate: Measured) -> float:
        return _CERTAIN * deviation * math.sqrt(1 / len(candidate.latencies) + 1 / len(lowest.latencies))

    equal = [candidate for candidate in measured if math.log(candidate.mean / lowest.mean) <= noise(candidate)]
    near = [candidate for candidate in equal if candidate.mean <= (1 + _NEAR) * lowest.mean]
    choice = min(near, key=lambda candidate: (*_size(candidate.setting), candidate.mean))
    return [
        choice,
        *sorted((candidate for candidate in equal if candidate is not choice), key=lambda candidate: candidate.mean),
    ]


def _size(setting: Setting) -> tuple[int, int, int, int]:
    return setting.processes, setting.batch_size, setting.threads, setting.delay_ms
