"""Measured times of batches, and predictions for the next ones.

The mean for each size is smoothed like the round-trip time of TCP (RFC 6298), so that it follows a model that becomes
slower or faster within about ten batches. The deviation is common to all sizes, relative to their means: with separate
deviations, a size whose first batch was slow would look uncertain, would not be run, and would never be measured again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchmar.server.workers.jobs import Job

# Weight of the latest batch. RFC 6298, section 2.3, has 1/4 for the deviation, which makes the margin too small at
# times.
_MEAN_WEIGHT, _DEVIATION_WEIGHT = 1 / 8, 1 / 16
_FIRST_DEVIATION = 0.5  # relative deviation until one is measured
_MARGIN = 3  # number of deviations above the mean that contains 99 of 100 normally distributed times


class BatchTimes:
    """Times of the batches of a pool, by kind and size."""

    def __init__(self) -> None:
        self._means: dict[tuple[str, int], float] = {}
        self._deviations: dict[str, tuple[float, int]] = {}  # each with the number of its batches
        self._typical_size: dict[str, float] = {}

    def record(self, kind: str, size: int, seconds: float) -> None:
        """Record that a batch of ``size`` requests took ``seconds``, from its dispatch to its replies."""
        mean = self._means.get((kind, size), 0.0)
        if mean:
            deviation, count = self._deviations.get(kind, (_FIRST_DEVIATION, 1))
            # A stall of many times the mean is cut off.
            latest = abs(seconds - mean) / max(seconds, mean)
            deviation += max(_DEVIATION_WEIGHT, 1 / (count + 1)) * (latest - deviation)
            self._deviations[kind] = deviation, count + 1
            self._means[kind, size] = mean + _MEAN_WEIGHT * (seconds - mean)
        else:
            self._means[kind, size] = seconds
        typical = self._typical_size.get(kind, size)
        self._typical_size[kind] = typical + _MEAN_WEIGHT * (size - typical)

    def mean(self, kind: str, size: int) -> float:
        """Return the expected seconds of a batch; 0 if no batch of this kind was measured.

        A size without a measurement has the mean of the next smaller measured size, or else of the next larger one. It
        is not scaled, because it is unknown whether the time grows with the size.
        """
        if mean := self._means.get((kind, size)):
            return mean
        sizes = [measured for of_kind, measured in self._means if of_kind == kind]
        if not sizes:
            return 0.0
        smaller = [measured for measured in sizes if measured < size]
        return self._means[kind, max(smaller) if smaller else min(sizes)]

    def upper(self, kind: str, size: int, batches: int = 1) -> float:
        """Return the seconds within which nearly every batch ends; 0 if no batch of this kind was measured.

        Args:
            kind: kind of the batch.
            size: size of the batch.
            batches: number of consecutive batches, of which this is the last; the others take the expected time. Their
                errors add.
        """
        deviation, _ = self._deviations.get(kind, (_FIRST_DEVIATION, 1))
        return self.mean(kind, size) * (1 + _MARGIN * deviation * math.sqrt(batches))

    def typical_size(self, kind: str) -> int:
        """Return the smoothed size of batches, rounded up; 1 if no batch of this kind was measured."""
        return math.ceil(self._typical_size.get(kind, 1))

    def seconds_until_reply(
        self, kind: str, waiting: Iterable[Job], busy: Mapping[object, float], batch_size: int
    ) -> float:
        """Return the seconds within which a request that arrives now nearly always has its reply.

        Args:
            kind: kind of the request.
            waiting: number of requests that wait before it.
            busy: seconds until the batch of each worker ends; not empty.
            batch_size: largest number of requests in a batch.
        """
        kinds = [job.batch_kind for job in waiting]
        same_kind = kinds.count(kind)
        batches, position = divmod(same_kind, batch_size)
        batches += -(-(len(kinds) - same_kind) // batch_size)
        size = min(batch_size, max(position + 1, self.typical_size(kind)))
        # After the running batch, the waiting batches, and the request's own batch.
        in_a_row = 2 + batches // len(busy)
        return seconds_until_free(busy, batches, self.mean(kind, batch_size)) + self.upper(kind, size, in_a_row)


def seconds_until_free(busy: Mapping[object, float], batches: int, seconds: float) -> float:
    """Return the seconds until a worker is free for another batch, after ``batches`` waiting ones.

    Args:
        busy: seconds until each worker is free; not empty.
        batches: number of batches that are dispatched before.
        seconds: seconds of each of these batches.
    """
    free = sorted(busy.values())
    rounds, position = divmod(batches, len(free))
    return free[position] + rounds * seconds
