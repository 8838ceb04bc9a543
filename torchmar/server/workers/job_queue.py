"""The jobs of a version that wait for a worker, and the choice of the next batch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from torchmar.server.api_error import ApiError
from torchmar.server.workers.batch_times import BatchTimes
from torchmar.server.workers.jobs import Job


class JobQueue(deque[Job]):
    """Waiting jobs, the next one first.

    Args:
        jobs: jobs that wait already.
        on_change: called after each change by a method of this class.
    """

    def __init__(self, jobs: Iterable[Job] = (), *, on_change: Callable[[], None] = lambda: None) -> None:
        super().__init__(jobs)
        self._on_change = on_change

    def append(self, job: Job, /) -> None:
        """Add a job after all others."""
        super().append(job)
        self._on_change()

    def take_batch(self, size: int, times: BatchTimes | None = None) -> list[Job]:
        """Remove and return at most ``size`` jobs of one kind, in their order; others keep their places.

        Jobs that have expired, or will expire before such a batch ends by ``times``, are removed, and their clients get
        an error. If a whole batch would be removed, the latest such batch is run nevertheless, to renew the
        measurement.
        """
        batch = self._next_batch(size)
        late: list[Job] = []
        while batch and times is not None:
            end = time.monotonic() + times.upper(batch[0].batch_kind, len(batch))
            doomed = [job for job in batch if job.deadline is not None and job.deadline < end]
            if not doomed:
                break
            late += doomed
            remaining = [job for job in batch if job not in doomed]
            if not remaining and not self:
                batch = [late.pop()]
                break
            self.extendleft(reversed(remaining))
            batch = self._next_batch(size)
        for job in late:
            job.expire()
        self._on_change()
        return batch

    def _next_batch(self, size: int) -> list[Job]:
        batch: list[Job] = []
        others: list[Job] = []
        kind = ""
        now = time.monotonic()
        while self and len(batch) < size:
            job = self.popleft()
            if job.expired(now):
                job.expire()
                continue
            if not batch:
                kind = job.batch_kind
            elif job.batch_kind != kind or job.isolated or batch[0].isolated:
                others.append(job)
                if len(others) >= size:
                    break
                continue
            batch.append(job)
        self.extendleft(reversed(others))
        return batch

    def put_back(self, jobs: Sequence[Job], *, isolated: bool = True) -> None:
        """Insert jobs before all others; each runs alone, because one of them may have ended a worker.

        Args:
            jobs: jobs, in their order.
            isolated: False if none of the jobs can be the cause.
        """
        for job in jobs:
            job.isolated = isolated or job.isolated
            if job.spans is not None:
                job.spans.begin_queue()
        self.extendleft(reversed(jobs))
        self._on_change()

    def remove_expired(self) -> None:
        """Remove expired jobs, and send an error for each."""
        now = time.monotonic()
        if expired := [job for job in self if job.expired(now)]:
            waiting = [job for job in self if not job.expired(now)]
            self.clear()
            self.extend(waiting)
            self._on_change()
            for job in expired:
                job.expire()

    def fail_all(self, error: ApiError) -> None:
        """Remove all jobs, and send an error for each."""
        while self:
            self.popleft().reply_error(error)
        self._on_change()
