"""Measured times of batches, and the prediction of how long the next one takes.

The mean of each size is smoothed as the round trip of TCP is (RFC 6298), so that a model that has become slower or
faster is followed within some ten batches. The deviation from it is that of all sizes, relative to their means: if each
size had its own, one whose first batch was slow would be taken for uncertain, would not be run, and would stay so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchmar.server.workers.jobs import Job

# Of the latest batch. RFC 6298, section 2.3, has 1/4 for the deviation, with which the margin is too small at times.
_MEAN_WEIGHT, _DEVIATION_WEIGHT = 1 / 8, 1 / 16
_FIRST_DEVIATION = 0.5  # until it is measured
_MARGIN = 3  # deviations above the mean in which 99 of 100 normally distributed times lie


class BatchTimes:
    """Times of the batches of a pool, by kind and size."""

    def __init__(self) -> None:
        self._means: dict[tuple[str, int], float] = {}
        self._deviations: dict[str, tuple[float, int]] = {}  # with the number of batches that it is of
        self._typical_size: dict[str, float] = {}

    def record(self, kind: str, size: int, seconds: float) -> None:
        """Record that a batch of ``size`` requests took ``seconds``, from its dispatch to its replies."""
        mean = self._means.get((kind, size), 0.0)
        if mean:
            deviation, count = self._deviations.get(kind, (_FIRST_DEVIATION, 1))
            # A stall that is many times the mean counts as one.
            latest = abs(seconds - mean) / max(seconds, mean)
            deviation += max(_DEVIATION_WEIGHT, 1 / (count + 1)) * (latest - deviation)
            self._deviations[kind] = deviation, count + 1
            self._means[kind, size] = mean + _MEAN_WEIGHT * (seconds - mean)
        else:
            self._means[kind, size] = seconds
        typical = self._typical_size.get(kind, size)
        self._typical_size[kind] = typical + _MEAN_WEIGHT * (size - typical)

    def mean(self, kind: str, size: int) -> float:
        """Return the expected seconds of a batch; 0 while none of this kind was measured.

        A size that was not measured has the mean of the next smaller one that was, else of the next larger one, and is
        not scaled: whether the time grows with the size is not known.
        """
        if known := self._means.get((kind, size)):
            return known
        sizes = [measured for of_kind, measured in self._means if of_kind == kind]
        if not sizes:
            return 0.0
        smaller = [measured for measured in sizes if measured < size]
        return self._means[kind, max(smaller) if smaller else min(sizes)]

    def upper(self, kind: str, size: int, batches: int = 1) -> float:
        """Return the seconds within which nearly every batch ends; 0 while none of this kind was measured.

        Args:
            kind: of the batch.
            size: of the batch.
            batches: how many run one after the other, this one last, the others in the expected time: their errors add.
        """
        deviation, _ = self._deviations.get(kind, (_FIRST_DEVIATION, 1))
        return self.mean(kind, size) * (1 + _MARGIN * deviation * math.sqrt(batches))

    def typical_size(self, kind: str) -> int:
        """Return the smoothed size of batches, rounded up; 1 while none of this kind was measured."""
        return math.ceil(self._typical_size.get(kind, 1))

    def seconds_until_reply(
        self, kind: str, waiting: Iterable[Job], busy: Mapping[object, float], batch_size: int
    ) -> float:
        """Return in how many seconds a request that arrives now will nearly always have its reply.

        Args:
            kind: of the request.
            waiting: the requests that wait before it.
            busy: by worker, the seconds until its batch ends; not empty.
            batch_size: requests of a batch at most.
        """
        kinds = [job.batch_kind for job in waiting]
        same_kind = kinds.count(kind)
        batches, position = divmod(same_kind, batch_size)
        batches += -(-(len(kinds) - same_kind) // batch_size)
        size = min(batch_size, max(position + 1, self.typical_size(kind)))
        # After the batch that runs now, those that wait, and its own.
        in_a_row = 2 + batches // len(busy)
        return seconds_until_free(busy, batches, self.mean(kind, batch_size)) + self.upper(kind, size, in_a_row)


def seconds_until_free(busy: Mapping[object, float], batches: int, seconds: float) -> float:
    """Return when a worker is free after ``batches`` that wait before.

    Args:
        busy: by worker, the seconds until it is free; not empty.
        batches: how many are dispatched before.
        seconds: that each of them takes.
    """
    free = sorted(busy.values())
    rounds, position = divmod(batches, len(free))
    return free[position] + rounds * seconds
