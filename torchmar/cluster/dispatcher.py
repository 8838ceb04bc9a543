"""The requests of a front to the replicas of a version: their queue, the choice of a replica, deadlines, repetition."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torchmar.cluster.balancer import Balancer
from torchmar.cluster.directory import ReplicaState
from torchmar.cluster.link import ReplicaLink
from torchmar.server.api_error import ApiError
from torchmar.server.telemetry import logs
from torchmar.server.workers import unavailable
from torchmar.server.workers.batch_times import BatchTimes
from torchmar.server.workers.job_queue import JobQueue
from torchmar.server.workers.jobs import Job
from torchmar.server.workers.pool_options import PoolObserver, PoolOptions

BATCHES = 2  # batches of a front at a replica: one runs, the next one fills
_TRIES = 5  # attempts to run a request whose replica ends
_CHECK_SECONDS = 0.1  # seconds between checks of deadlines


class DispatcherOwner(Protocol):
    """The pool of a dispatcher."""

    @property
    def failure(self) -> str:
        """The reason why there are too few replicas; empty: there are enough, or they are being loaded."""

    def on_link(self, link: ReplicaLink) -> None:
        """Handle a replica that accepts requests, no longer accepts them, or cannot be reached (``problem``)."""

    def on_idle(self) -> None:
        """Handle the event that no request waits or is run."""


class Dispatcher:
    """The waiting requests, and connections to the replicas that run requests.

    Args:
        options: configuration of the version.
        observer: callbacks for events.
        node_id: Ray's id of this front's node.
        owner: pool of this dispatcher.

    Attributes:
        links: connections to replicas, by Ray Serve's names of the replicas.
        batch_times: times of batches on replicas, measured since a request had a deadline; None: none had one.
    """

    def __init__(self, options: PoolOptions, observer: PoolObserver, node_id: str, owner: DispatcherOwner) -> None:
        self.links: dict[str, ReplicaLink] = {}
        self.batch_times: BatchTimes | None = None
        self._options, self._observer, self._node_id, self._owner = options, observer, node_id, owner
        self._balancer: Balancer[ReplicaLink] = Balancer()
        self._queue = JobQueue()
        self._losses: WeakKeyDictionary[Job, int] = WeakKeyDictionary()
        self._scheduled = self._closed = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_CHECK_SECONDS, self._check)

    @property
    def ready(self) -> int:
        """The number of replicas that accept requests of this front."""
        return self._balancer.ready

    @property
    def _running(self) -> int:
        """The number of requests that wait or are run."""
        return len(self._queue) + self._balancer.total

    @property
    def pending(self) -> int:
        """The number of requests that wait for a worker: those beyond one batch for each ready replica."""
        return max(0, self._running - self.ready * self._options.batch_size)

    @property
    def busy(self) -> bool:
        """Whether any request waits or is run."""
        return self._running > 0

    def connect(self, replicas: Mapping[str, ReplicaState]) -> None:
        """Connect to new replicas, and close the connections to replicas that no longer exist.

        Args:
            replicas: all existing replicas, by Ray Serve's names.
        """
        for replica in replicas.values():
            if replica.endpoint and replica.id not in self.links and not self._closed:
                limit = BATCHES * self._options.batch_size
                self.links[replica.id] = ReplicaLink(replica.id, replica.endpoint, self._node_id, limit, self)
        for replica_id in self.links.keys() - replicas.keys():
            link = self.links.pop(replica_id)
            link.close()
            self._balancer.remove(link)

    def admit(self, kind: str, deadline: float | None) -> None:
        """Check whether a request that arrives now can be run, if there should be replicas.

        Args:
            kind: kind of the batch for the request.
            deadline: deadline of its reply, by `time.monotonic`; None: it has none.

        Raises:
            DeadlineError: 503; the deadline cannot be met.
            ApiError: 503; no replica loads, or too many requests wait.
        """
        if self._owner.failure and not self.ready:
            raise unavailable.does_not_load(self._options)
        if (pending := self.pending) >= self._options.queue_size:
            raise unavailable.queue_full(self._options, pending, loading=not self.ready)
        if self._options.job_tickets and self._running >= self.ready * self._options.batch_size:
            raise unavailable.no_ticket(self._options)
        if deadline is not None:
            unavailable.check_deadline(self._options, deadline, self._seconds_until_reply(kind), pending)

    def enqueue(self, job: Job) -> None:
        """Run a request that was admitted."""
        self._queue.append(job)
        self._schedule()

    def fail_unless_ready(self) -> None:
        """Reply to waiting requests if no replica loads: the next replica may fail, too."""
        if not self.ready:
            self._queue.fail_all(unavailable.does_not_load(self._options))

    def fail_waiting(self) -> None:
        """Reply to waiting requests: there will be no replica."""
        self._queue.fail_all(unavailable.no_worker(self._options))

    def close(self) -> None:
        """Close all connections; requests that wait or are run get a 503."""
        self._closed = True
        self._timer.cancel()
        self.fail_waiting()
        for link in self.links.values():
            for job in link.close():
                job.reply_error(unavailable.no_worker(self._options))
            self._balancer.remove(link)
        self.links.clear()

    def _seconds_until_reply(self, kind: str) -> float:
        """Return the seconds in which a request that arrives now will nearly always have its reply.

        The result is 0 if it need not wait, or if there are no measurements, as in `torchmar.server.workers.pool.Pool`.
        Requests of other fronts are part of the measured times; each replica checks deadlines again, with all of its
        requests.
        """
        times = self.batch_times
        if times is None:
            times = self.batch_times = BatchTimes()
        link = self._balancer.choose()
        if link and not link.jobs and not self._queue:
            return 0.0
        now, size = time.monotonic(), self._options.batch_size
        busy: dict[object, float] = {}
        waiting = list(self._queue)
        for link in self.links.values():
            if link.ready:
                jobs = list(link.jobs.values())
                waiting += jobs[size:]
                expected = times.mean(jobs[0].batch_kind, len(jobs[:size])) if jobs else 0.0
                busy[link] = max(0.0, expected - (now - link.batch_started))
        return times.seconds_until_reply(kind, waiting, busy, size) if busy else 0.0

    def _schedule(self) -> None:
        """Dispatch at the end of this iteration of the loop: requests that arrive together share a frame."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._queue and (link := self._balancer.choose()):
            if batch := self._queue.take_batch(min(link.room, self._options.batch_size), self.batch_times):
                link.send(batch)
                self._balancer.place(link)
        if not self.busy:
            self._owner.on_idle()

    def _check(self) -> None:
        """Reply to expired requests, and check the connections."""
        self._queue.remove_expired()
        if self._queue and self._owner.failure:
            self.fail_unless_ready()
        now, demand = time.monotonic(), self._running
        for link in list(self.links.values()):
            link.check(now, demand)
        self._timer = self._loop.call_later(_CHECK_SECONDS, self._check)

    def on_state(self, link: ReplicaLink) -> None:
        """Of `torchmar.cluster.link.LinkOwner`."""
        self._balancer.place(link)
        self._owner.on_link(link)
        self._schedule()

    def on_replies(self, link: ReplicaLink, batches: Sequence[Any], updates: Sequence[Any]) -> None:
        """Of `torchmar.cluster.link.LinkOwner`."""
        self._balancer.place(link)
        self._dispatch()
        name, version = self._options.name, self._options.version
        for size, queue_seconds, handler_seconds in batches:
            self._observer.on_batch(name, version, size, queue_seconds, handler_seconds)
        if updates:
            self._observer.on_metrics(name, version, updates)

    def on_lost(self, link: ReplicaLink, unanswered: Sequence[tuple[Job, bool]]) -> None:
        """Of `torchmar.cluster.link.LinkOwner`."""
        self._balancer.place(link)
        repeated = []
        for job, streaming in unanswered:
            self._losses[job] = losses = self._losses.get(job, 0) + 1
            if streaming or losses >= _TRIES:
                job.reply_error(ApiError(500, "InternalServerException", "Worker died."))  # TorchServe's text
            elif not job.cancelled:
                repeated.append(job)
        # In nearly all cases, the replica has ended for another reason than a request, which ends only its worker.
        self._queue.put_back(repeated, isolated=False)
        name, version = self._options.name, self._options.version
        if not link.draining:
            text = f"replica {link.id} has ended; {len(repeated)} requests are repeated"
            logs.log_version(logging.WARNING, name, version, text)
            self._observer.on_death(name, version, link.id)
        self._owner.on_link(link)
        self._schedule()
