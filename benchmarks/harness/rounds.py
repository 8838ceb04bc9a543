"""Two sides called in turn in one process, and the interval of a ratio from the rounds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def in_turn(sides: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """Return the CPU seconds of each side in each round; the sides begin in turn.

    Args:
        sides: functions to call, by name.
        rounds: number of rounds that count.
        warm_up: number of rounds before them that do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + warm_up):
        for name, side in list(sides.items())[:: 1 if turn % 2 else -1]:
            begun = time.process_time()
            side()
            if turn >= warm_up:
                times[name].append(time.process_time() - begun)
    return times


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, and an interval that contains that of the population with at least 95 % confidence.

    Its ends are values whose ranks follow from the binomial distribution (Conover, Practical Nonparametric Statistics,
    section 3.2); of fewer than six values, they are the smallest and the largest.
    """
    ordered, count = sorted(values), len(values)
    below, rank = 0.0, 0
    while rank < count // 2 and below + math.comb(count, rank) / 2**count <= 0.025:
        below += math.comb(count, rank) / 2**count
        rank += 1
    rank = max(rank, 1)
    return statistics.median(ordered), ordered[rank - 1], ordered[count - rank]
