"""The highest rate at which a simulated server stays within a latency limit, by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torchmar.tuning.simulation import Outcome, System, late_limit, simulate, usable_capacity, warm_up

_NEAR = 0.04  # relative distance of the first rate that is tried next to an estimate


@dataclass(frozen=True, kw_only=True)
class HighestRate:
    """The highest rate at which the latency stays within a limit.

    Attributes:
        rate: requests per second; 0 if no rate is low enough.
        outcome: outcome at this rate; None if the rate is 0.
        rejects: whether a slightly higher rate makes the server reject requests, rather than answer late.
    """

    rate: float
    outcome: Outcome | None = None
    rejects: bool = False


class _Trials:
    """Simulations of one system at several rates, each of which is within the limit or not."""

    def __init__(
        self, system: System, percent: float | None, seconds: Callable[[float], float], requests: int, seed: int
    ) -> None:
        self._system, self._percent, self._seconds = system, percent, seconds
        self._requests, self._seed = requests, seed
        self._counted = requests - warm_up(requests)
        self.outcomes: dict[float, Outcome] = {}  # outcomes at the rates within the limit
        self.rejects: dict[float, bool] = {}  # whether requests were rejected, at the other rates

    def keeps(self, rate: float) -> bool:
        """Return whether the statistic is within the limit at a rate, and no request is rejected."""
        bound = self._seconds(rate)
        if bound <= 0:
            return False
        late = None if self._percent is None else late_limit(self._percent, bound, self._requests)
        outcome = simulate(self._system, rate, requests=self._requests, seed=self._seed, late=late)
        meets_bound = len(outcome.latencies) == self._counted and outcome.statistic(self._percent) < bound
        if meets_bound and not outcome.rejected:
            self.outcomes[rate] = outcome
            return True
        self.rejects[rate] = outcome.rejected > 0
        return False


def highest_rate(
    system: System,
    percent: float | None,
    seconds: Callable[[float], float],
    *,
    requests: int = 5_000,
    seed: int = 0,
    precision: float = 0.02,
    near: float = 0.0,
) -> HighestRate:
    """Return the highest rate at which a statistic of the latency stays within a limit.

    Args:
        system: the server.
        percent: percentile to compare; None: the mean.
        seconds: returns the limit for a rate; no rate is low enough for a limit that is not positive.
        requests: number of requests that are simulated at each rate.
        seed: seed of the simulations.
        precision: relative precision of the result.
        near: estimate of the result, where the search begins; 0: unknown.
    """
    trials = _Trials(system, percent, seconds, requests, seed)
    high = usable_capacity(system)
    lowest = low = high / 64
    if near > low:
        low, high = _around(trials.keeps, min(near, high), low, high)
    elif trials.keeps(high):
        low = high
    if low == lowest and not trials.keeps(low):
        return HighestRate(rate=0.0)
    while high / low > 1 + precision:
        middle = math.sqrt(low * high) if high / low > 4 else (low + high) / 2
        low, high = (middle, high) if trials.keeps(middle) else (low, middle)
    return HighestRate(rate=low, outcome=trials.outcomes[low], rejects=trials.rejects.get(high, False))


def _around(keeps: Callable[[float], bool], near: float, low: float, high: float) -> tuple[float, float]:
    """Return a lower and an upper bound of the result; the closer it is to ``near``, the closer they are together."""
    width = _NEAR
    if keeps(near):
        low = near
        while low < high:
            higher = min(high, near * (1 + width))
            if not keeps(higher):
                return low, higher
            low, width = higher, 2 * width
        return low, high
    high = near
    while (lower := near / (1 + width)) > low:
        if keeps(lower):
            return lower, high
        high, width = lower, 2 * width
    return low, high
