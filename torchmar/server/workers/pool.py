"""The pool of one model version: admission of requests, batches for idle workers, and the number of workers.

An idle worker gets all waiting requests at once: under load, batches fill while workers are busy, and without load no
request waits for others. ``max_batch_delay`` is a limit, as in TorchServe, and is never reached. A batch contains
requests of one kind, predictions or explanations, because TorchServe's own handlers only look at the first request.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence

from torchmar.server.telemetry.system_metrics import cores
from torchmar.server.workers import unavailable
from torchmar.server.workers.batch_times import BatchTimes
from torchmar.server.workers.busy_poll import BusyPoller
from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.job_queue import JobQueue
from torchmar.server.workers.jobs import Job
from torchmar.server.workers.model_loader import Loader, ModelLoader
from torchmar.server.workers.pool_options import PoolObserver, PoolOptions, WorkerInfo
from torchmar.server.workers.worker import Worker
from torchmar.worker.process.messages import ModelDescription
from torchmar.worker.process.stages import POSTPROCESS, PREPROCESS

_CHECK_SECONDS = 0.1  # interval of checks of deadlines


class Pool:
    """A version's queue and its workers.

    Args:
        fork_server: forks the processes of the workers.
        options: the configuration.
        observer: callbacks for events.
        loader: starts the workers; its owner, such as another pool of the same model, releases it. None: the pool
            has its own loader.
        has_room: whether a batch may be sent to an idle worker; None: always.
        on_batch: called after jobs have left the queue for a worker.

    Attributes:
        min_workers: number of workers that should run.
        max_workers: largest number of workers, as TorchServe reports it.
        failure: traceback of the last worker that did not load or exited; empty after a worker has loaded.
        batch_times: times of batches, measured after the first request with a deadline; None: there was none.
    """

    def __init__(
        self,
        fork_server: ForkServer,
        options: PoolOptions,
        observer: PoolObserver,
        *,
        loader: Loader | None = None,
        has_room: Callable[[], bool] | None = None,
        on_batch: Callable[[], None] | None = None,
    ) -> None:
        self.options = options
        self.min_workers = self.max_workers = 0
        self.failure = ""
        self.batch_times: BatchTimes | None = None
        self.loader: Loader = loader or ModelLoader(fork_server, options)
        self._releases = loader is None
        self._observer, self._has_room, self._on_batch = observer, has_room, on_batch
        self._reply_times: dict[str, tuple[float, float]] = {}  # see `_reply_time`; by kind
        self._queue = JobQueue(on_change=self._reply_times.clear)
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []
        self._poller = BusyPoller(options.poll / 1e6)
        self._closed = False
        self._scheduled = False
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None  # only while requests wait or run

    @property
    def ready(self) -> int:
        """The number of ready workers."""
        return sum(worker.state == "READY" for worker in self._workers)

    @property
    def given_up(self) -> bool:
        """Whether no worker is running, and none will be restarted."""
        return bool(self._workers) and all(worker.given_up for worker in self._workers)

    @property
    def pending(self) -> int:
        """The number of requests that wait for a worker."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._queue) or any(worker.jobs for worker in self._workers)

    @property
    def description(self) -> ModelDescription:
        """The handler's description of its tensors; empty until it has loaded once."""
        return self.loader.description

    @property
    def signature(self) -> tuple[object, ...]:
        """A value that changes with the workers; cheaper than `workers`."""
        return self.min_workers, self.max_workers, *(worker.signature for worker in self._workers)

    def workers(self) -> list[WorkerInfo]:
        """Return the state of each worker."""
        return [worker.info() for worker in self._workers]

    def stage_workers(self) -> dict[str, list[WorkerInfo]]:
        """Return the state of each worker of other stages than the model, by stage; this pool has none."""
        return {}

    # Requests.

    def submit(self, job: Job) -> None:
        """Run a request; its ``on_reply`` is called with the reply.

        Raises:
            ApiError: for the reasons of `admit`.
        """
        self.admit(job.batch_kind, job.deadline)
        self.enqueue(job)

    def admit(self, kind: str, deadline: float | None) -> None:
        """Check whether a request that arrives now can be run.

        Args:
            kind: kind of its batch.
            deadline: deadline of its reply, by `time.monotonic`; None: it has none.

        Raises:
            DeadlineError: 503; the deadline cannot be met.
            ApiError: 503; there is no worker, or the queue is full.
        """
        self.check_room(len(self._queue))
        if deadline is not None:
            unavailable.check_deadline(self.options, deadline, self.seconds_until_reply(kind), len(self._queue))

    def check_room(self, pending: int) -> None:
        """Check whether a request can be run; ``pending`` requests count for the limit of the queue.

        Raises:
            ApiError: 503; there is no worker, or the queue is full.
        """
        if not self.min_workers or self._closed:
            raise unavailable.no_worker(self.options)
        if self.failure and not self.ready:
            raise unavailable.does_not_load(self.options)
        if pending >= self.options.queue_size:
            raise unavailable.queue_full(self.options, pending, loading=not self.ready)
        if self.options.job_tickets and not self._idle:
            raise unavailable.no_ticket(self.options)

    def seconds_until_reply(self, kind: str) -> float:
        """Return the seconds within which a request that arrives now nearly always has its reply.

        It is 0 if the request need not wait, whatever the measurements are: only running requests renews them, and a
        model that was slow at first would otherwise never answer again. It is also 0 while there are no measurements.
        """
        now = time.monotonic()
        reply, valid_until = self._reply_times.get(kind, (0.0, 0.0))
        if now >= valid_until:
            reply, valid_until = self._reply_times[kind] = self._reply_time(kind, now)
        return max(0.0, reply - now)

    def _reply_time(self, kind: str, now: float) -> tuple[float, float]:
        """Return the time of the reply to a request that arrives now, and the time until which this value is valid.

        It is valid until the queue changes, a worker becomes idle, or a batch takes longer than expected. Most requests
        to an overloaded server are rejected, which changes none of these.
        """
        times = self.batch_times
        if times is None:
            times = self.batch_times = BatchTimes()
        busy: dict[object, float] = {}
        ends = math.inf
        for worker in self._workers:
            if worker.state == "READY" and not worker.draining:
                jobs = worker.jobs
                end = worker.batch_started + times.mean(jobs[0].batch_kind, len(jobs)) if jobs else now
                busy[worker], ends = max(0.0, end - now), min(ends, end)
        if not busy or (self._idle and not self._queue):
            return 0.0, math.inf
        return now + times.seconds_until_reply(kind, self._queue, busy, self.options.batch_size), ends

    def enqueue(self, job: Job) -> None:
        """Run a request that `admit` has accepted."""
        self._queue.append(job)
        self._watch_deadlines()
        self.schedule()

    def schedule(self) -> None:
        """Dispatch at the end of this loop iteration: requests that arrive together share a batch, without waiting."""
        if self._idle and not self._scheduled and self._queue:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def repeat(self, jobs: Sequence[Job]) -> None:
        """Implement `WorkerOwner`."""
        self._queue.put_back(jobs)
        self._watch_deadlines()
        self.schedule()

    def on_idle(self, worker: Worker) -> None:
        """Implement `WorkerOwner`."""
        self._on_workers_changed()
        if worker.draining:
            worker.kill()
            return
        if self._queue and (batch := self._take_batch()):
            self._send(worker, batch)
        else:
            self._idle.append(worker)

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._idle and self._queue:
            if not (batch := self._take_batch()):
                return
            self._send(self._idle.pop(), batch)

    def _take_batch(self) -> list[Job]:
        if self._has_room and not self._has_room():
            return []
        batch = self._queue.take_batch(self.options.batch_size, self.batch_times)
        if self._on_batch:
            self._on_batch()
        return batch

    def _send(self, worker: Worker, batch: list[Job]) -> None:
        worker.send_batch(batch)
        if worker.fast and len(batch) == 1 and not self._queue:
            self._poller.poll(lambda: worker.jobs)

    def _watch_deadlines(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(_CHECK_SECONDS, self._check_deadlines)

    def _check_deadlines(self) -> None:
        """Reply to expired jobs, and kill workers that exceed the response timeout."""
        self._timer = None
        self._queue.remove_expired()
        now = time.monotonic()
        for worker in self._workers:
            if worker.jobs and now - worker.batch_started > self.options.response_timeout:
                worker.time_out()
        self.schedule()
        if self.busy:
            self._watch_deadlines()

    # Workers.

    async def scale(self, min_workers: int, max_workers: int) -> bool:
        """Start workers up to ``min_workers``, drain those beyond ``max_workers``; return whether all have loaded.

        The result is False as soon as a worker has failed to load; ``failure`` is the reason, and the worker tries
        again in the background.
        """
        self.min_workers, self.max_workers = min_workers, max(min_workers, max_workers)
        while len(self._staying()) > (self.max_workers if min_workers else 0):
            without_jobs = [worker for worker in self._staying() if not worker.jobs]
            self._drain((without_jobs or self._staying())[-1])
        self._workers = [worker for worker in self._workers if not worker.given_up]
        new_workers = [self._add() for _ in range(min_workers - len(self._staying()))]
        if not min_workers:
            await self._wait_for(lambda: not self._workers)
            self._release_model()
            self._queue.fail_all(unavailable.no_worker(self.options))
        self._share_cores()
        await self._wait_for(
            lambda: all(worker.state == "READY" or worker.failure or worker.draining for worker in new_workers)
        )
        await self._wait_for(lambda: not any(worker.draining for worker in self._workers))
        return not any(worker.failure or worker.draining for worker in new_workers)

    async def described(self) -> None:
        """Wait until a handler has loaded and described its tensors, or all workers have failed."""
        await self._wait_for(lambda: self.description or self.failure or self._closed or not self.min_workers)

    async def drain(self, seconds: float) -> bool:
        """Wait up to ``seconds`` until no request waits or runs; return whether this was reached."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wait_for(lambda: not self.busy), seconds)
        return not self.busy

    async def close(self) -> None:
        """Kill all workers; waiting and running requests get a 503."""
        self._closed = True
        self.min_workers = 0
        if self._timer:
            self._timer.cancel()
        self._queue.fail_all(unavailable.no_worker(self.options))
        for worker in list(self._workers):
            worker.kill(unavailable.no_worker(self.options))
        self._release_model()
        self._on_workers_changed()

    def on_loaded(self, worker: Worker) -> None:
        """Implement `WorkerOwner`."""
        self.failure = worker.failure
        self._share_cores()
        self._on_workers_changed()

    def on_load_failed(self, worker: Worker) -> None:
        """Implement `WorkerOwner`."""
        self.failure = worker.failure
        if not self.ready:
            self._queue.fail_all(unavailable.does_not_load(self.options))  # the next attempt may also fail
        self._on_workers_changed()

    def on_exit(self, worker: Worker) -> None:
        """Implement `WorkerOwner`."""
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.draining and worker in self._workers:
            self._workers.remove(worker)
        self._on_workers_changed()

    def _on_workers_changed(self) -> None:
        self._reply_times.clear()
        self._changed.set()

    def _staying(self) -> list[Worker]:
        return [worker for worker in self._workers if not worker.draining]

    def _add(self) -> Worker:
        used_gpus = [worker.gpu for worker in self._staying()]
        gpu = min(self.options.devices, key=used_gpus.count, default=None)
        worker = Worker(self.options, gpu, loader=self.loader, observer=self._observer, owner=self)
        self._workers.append(worker)
        return worker

    def _drain(self, worker: Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
        worker.drain()
        self._on_workers_changed()

    def _release_model(self) -> None:
        if self._releases:
            self.loader.release()

    def _share_cores(self) -> None:
        """Limit the threads of the workers to the number of cores; workers of other stages have one each."""
        options = self.options
        free = (options.cores or cores()) - options.preprocess_workers - options.postprocess_workers
        threads = 1 if options.stage in (PREPROCESS, POSTPROCESS) else max(1, free // max(1, self.min_workers))
        for worker in self._workers:
            worker.limit_threads(threads)

    async def _wait_for(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()
