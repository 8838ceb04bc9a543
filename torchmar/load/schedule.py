"""The times at which requests are due: a Poisson process, a constant rate, or the times of an access log."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from torchmar.load.kinds import Arrivals


def poisson(rate: float, seed: int = 0) -> Iterator[float]:
    """Yield the times of a Poisson process, which models many independent clients, without end.

    Args:
        rate: requests per second, more than 0.
        seed: equal seeds give equal times.
    """
    draw = random.Random(seed).expovariate
    time = 0.0
    while True:
        time += draw(rate)
        yield time


def constant(rate: float) -> Iterator[float]:
    """Yield times at equal distances, starting with 0, without end."""
    return (number / rate for number in itertools.count())


def at_rate(arrivals: Arrivals, rate: float, seed: int = 0) -> Iterator[float]:
    """Yield the times of arrivals at a rate, in seconds since the start, in ascending order."""
    return poisson(rate, seed) if arrivals == "poisson" else constant(rate)


def recorded(times: Sequence[float]) -> Iterator[float]:
    """Yield the times of a log, in ascending order, as seconds since the first one."""
    return (time - times[0] for time in times)
