"""The highest rate at which a simulated server keeps a bound of its latency, by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torchmar.tuning.simulation import Outcome, System, late_limit, simulate, usable_capacity, warm_up

_NEAR = 0.04  # relative distance of the first rate that is tried beside one that is probably right


@dataclass(frozen=True, kw_only=True)
class HighestRate:
    """The highest rate at which a bound is kept.

    Attributes:
        rate: requests per second; 0 if the bound is kept at none.
        outcome: of this rate; None if it is 0.
        rejects: whether requests are rejected, and not late, at a slightly higher rate.
    """

    rate: float
    outcome: Outcome | None = None
    rejects: bool = False


class _Trials:
    """Simulations of one system at several rates, each of which keeps a bound or does not."""

    def __init__(
        self, system: System, percent: float | None, seconds: Callable[[float], float], requests: int, seed: int
    ) -> None:
        self._system, self._percent, self._seconds = system, percent, seconds
        self._requests, self._seed = requests, seed
        self._counted = requests - warm_up(requests)
        self.outcomes: dict[float, Outcome] = {}  # of the rates at which the bound is kept
        self.rejects: dict[float, bool] = {}  # at the rates at which it is not

    def keeps(self, rate: float) -> bool:
        """Return whether the statistic is below the bound at a rate, and no request is rejected."""
        bound = self._seconds(rate)
        if bound <= 0:
            return False
        late = None if self._percent is None else late_limit(self._percent, bound, self._requests)
        outcome = simulate(self._system, rate, requests=self._requests, seed=self._seed, late=late)
        kept = len(outcome.latencies) == self._counted and outcome.statistic(self._percent) < bound
        if kept and not outcome.rejected:
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
    """Return the highest rate at which a statistic of the latency stays below a bound.

    Args:
        system: the server.
        percent: the percentile that is bounded; None: the mean.
        seconds: returns the bound for a rate; where it is not positive, none is kept.
        requests: simulated at each rate.
        seed: of the simulations.
        precision: of the result, relative.
        near: a rate that is probably near the result, where the search begins; 0: it is not known.
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
    """Return bounds of the highest rate that is kept, which are the closer the nearer it is to a rate."""
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
