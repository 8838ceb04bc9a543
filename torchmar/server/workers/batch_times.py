"""Measured times of batches, and the prediction of how long the next one takes.

The estimate of a batch's time is that of a round trip in TCP (RFC 6298): a smoothed mean, and a smoothed deviation from
it, so that a model that has become slower or faster is followed within some ten batches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torchmar.server.api_error import ApiError

if TYPE_CHECKING:
    from torchmar.server.workers.jobs import Job

_MEAN_WEIGHT, _DEVIATION_WEIGHT = 1 / 8, 1 / 4  # of the latest batch; RFC 6298, section 2.3
_MARGIN = 2  # deviations above the mean in which nearly all batches end


class DeadlineError(ApiError):
    """A request cannot be answered before its deadline, and is not run."""

    def __init__(self, message: str, retry_seconds: float = 1.0) -> None:
        headers = {"Retry-After": str(max(1, math.ceil(retry_seconds)))}
        super().__init__(503, "ServiceUnavailableException", message, headers)


class BatchTimes:
    """Times of the batches of a pool, by kind and size."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, int], tuple[float, float]] = {}
        self._typical_size: dict[str, float] = {}

    def record(self, kind: str, size: int, seconds: float) -> None:
        """Record that a batch of ``size`` requests took ``seconds``, from its dispatch to its replies."""
        if known := self._times.get((kind, size)):
            mean, deviation = known
            deviation += _DEVIATION_WEIGHT * (abs(seconds - mean) - deviation)
            self._times[kind, size] = mean + _MEAN_WEIGHT * (seconds - mean), deviation
        else:
            self._times[kind, size] = seconds, seconds / 2
        typical = self._typical_size.get(kind, size)
        self._typical_size[kind] = typical + _MEAN_WEIGHT * (size - typical)

    def mean(self, kind: str, size: int) -> float:
        """Return the expected seconds of a batch; 0 while none of this kind was measured."""
        return self._estimate(kind, size)[0]

    def upper(self, kind: str, size: int) -> float:
        """Return the seconds within which nearly every batch ends; 0 while none of this kind was measured."""
        mean, deviation = self._estimate(kind, size)
        return mean + _MARGIN * deviation

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
        kinds = Counter(job.batch_kind for job in waiting)
        same_kind = kinds.pop(kind, 0)
        batches, position = divmod(same_kind, batch_size)
        batches += -(-kinds.total() // batch_size)
        size = min(batch_size, max(position + 1, self.typical_size(kind)))
        return seconds_until_free(busy, batches, self.mean(kind, batch_size)) + self.upper(kind, size)

    def _estimate(self, kind: str, size: int) -> tuple[float, float]:
        """Return mean and deviation; of the next smaller size that was measured, else of the next larger one.

        A batch of another size is not scaled: whether its time grows with the size is not known.
        """
        if known := self._times.get((kind, size)):
            return known
        sizes = [measured for of_kind, measured in self._times if of_kind == kind]
        if not sizes:
            return 0.0, 0.0
        smaller = [measured for measured in sizes if measured < size]
        return self._times[kind, max(smaller) if smaller else min(sizes)]


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
