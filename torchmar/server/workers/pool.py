"""The workers of one model version and the queue before them: batching, deadlines, restarts.

A worker that is free takes what has queued, at once: under load batches fill while workers are
busy, and without load no request waits for others. ``max_batch_delay`` is thereby kept as the bound
that it is in TorchServe. A batch has requests of one kind, predictions or explanations, since handlers that
TorchServe ships look at the first request only.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from torchmar.errors import WorkerError
from torchmar.server.api_error import ApiError
from torchmar.server.telemetry import logs
from torchmar.server.telemetry.system_metrics import cores
from torchmar.server.workers.busy_poll import BusyPoller
from torchmar.server.workers.jobs import Job, Reply
from torchmar.server.workers.processes import ForkServer, LoadFailed, ModelProcess, ParentEnded, WorkerProcess
from torchmar.worker.process import forking, frames, shared_weights

State = Literal["READY", "LOADING", "UNLOADING"]

_BACK_OFF = (0.0, 1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0)  # seconds, as TorchServe waits
_SWEEP = 0.1  # seconds between looks at deadlines
_SMALL = 1 << 16  # bytes
_DIED = "Worker died."
_ENDED = "Backend worker process died."
_TOO_OFTEN = 3  # deaths in a row, without an answer in between
_DIES = "a worker ended {} times in a row before it answered; the log of the workers has what it said"
_PATIENCE = 3  # deaths of the parent of the workers, in a row, that are not the model's fault
# Why a request is not run, behind the model's name; the first is TorchServe's for all of them.
_NO_WORKER = (
    "has no worker to serve inference request. Please use scale workers API to add workers. If this is a sequence "
    "inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
)
_QUEUE_FULL = (
    "has {} requests waiting{}, as many as job_queue_size={} admits. Try again later, add workers, or raise "
    "job_queue_size (jobQueueSize in model-config.yaml)."
)
_NO_TICKET = "has no idle worker, and useJobTicket admits no waiting requests. Try again later, or add workers."
_DO_NOT_LOAD = "has no worker that loads. The management API describes the model with the reason (failure)."
_RETRY_SECONDS, _RETRY_WITHOUT_WORKERS_SECONDS = 1, 10  # what clients get as Retry-After
_ids = itertools.count(9000)  # TorchServe calls its workers by their ports


class PoolObserver(Protocol):
    """Who wants to know what happens; see `torchmar.server.telemetry.metrics`."""

    def batch(self, name: str, version: str, size: int, queue_seconds: Sequence[float], handler_seconds: float) -> None:
        """Take note of a batch that was answered."""

    def loaded(self, name: str, version: str, worker: str, seconds: float) -> None:
        """Take note that a worker has come up."""

    def forget(self, name: str, version: str) -> None:
        """Forget a version that is registered no more."""

    def custom(self, name: str, version: str, updates: Sequence[Any]) -> None:
        """Take note of what a handler has measured: ``[name, unit, value, type, [[dimension, value], ...]]`` each."""


@dataclass(frozen=True)
class PoolOptions:
    """What a version is served with; times in seconds, but for ``max_batch_delay``, which is in milliseconds.

    Attributes:
        memory_limit: bytes that a worker may have; 0: no limit.
        poll: microseconds that a worker stays awake for the next batch, and the server for a worker's answer.
        preprocess_workers: workers of their own that the steps before the model have; 0: none, see `stages`.
        stage: what the workers do of a request; empty: all of it.
        fork: whether workers are forks of one process that has loaded the model; see `torchmar.worker.process.forking`.
        fork_reason: of that, for the log.
    """

    name: str
    version: str
    handler: str
    folder: str
    envelope: str = ""
    batch_size: int = 1
    max_batch_delay: float = 100.0
    response_timeout: float = 120.0
    startup_timeout: float = 120.0
    queue_size: int = 100
    devices: tuple[int, ...] = ()
    retry_seconds: float = 300.0
    requirements: str = ""
    metrics_config: str = ""
    limit_max_image_pixels: bool = True
    job_tickets: bool = False
    memory_limit: int = 0
    poll: int = 0
    preprocess_workers: int = 0
    stage: str = ""
    fork: str = forking.NEVER
    fork_reason: str = ""


@dataclass(frozen=True)
class WorkerInfo:
    """The state of a worker; ``memory`` in bytes, ``started`` in seconds since 1970."""

    id: str
    state: State
    pid: int
    started: float
    gpu: int | None
    memory: int


class Pool:
    """A version's queue and its workers.

    Attributes:
        min_workers: how many there should be.
        max_workers: how many there may be; TorchServe reports it, and so does this.
        failure: the traceback of the worker that did not load or died last; empty since one came up.
        description: what the handler says of its tensors (`torchmar.worker.process.describing`); empty until it has
            loaded once.
    """

    def __init__(self, fork_server: ForkServer, options: PoolOptions, tell: PoolObserver) -> None:
        self.options = options
        self.min_workers = self.max_workers = 0
        self.failure = ""
        self.description: dict[str, Any] = {}
        self._fork_server, self._tell = fork_server, tell
        self._queue: deque[Job] = deque()
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._model_process: ModelProcess | None = None
        self._awake = BusyPoller(options.poll / 1e6)
        self._shares = options.fork != forking.NEVER and not options.devices
        self._mode_logged = False
        self._weights: shared_weights.WeightsFile | None = None
        self._growing = asyncio.Lock()
        self._closed = False
        self._scheduled = False
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._sweeper = self._loop.call_later(_SWEEP, self._sweep)

    # What clients of a pool ask.

    @property
    def ready(self) -> int:
        """How many workers answer."""
        return sum(worker.state == "READY" for worker in self._workers)

    @property
    def pending(self) -> int:
        """How many requests wait for a worker."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether any request waits or is being worked at."""
        return bool(self._queue) or any(worker.jobs for worker in self._workers)

    def workers(self) -> list[WorkerInfo]:
        """Return the state of each worker."""
        return [worker.info() for worker in self._workers]

    def submit(self, job: Job) -> None:
        """Have a request answered; its ``done`` is called when it is.

        Raises:
            ApiError: 503; there is no worker, or the queue is full.
        """
        self._admit(len(self._queue))
        self._queue.append(job)
        self._schedule()

    async def scale(self, min_workers: int, max_workers: int) -> bool:
        """Start workers until there are ``min_workers``, end those beyond ``max_workers``; tell whether they answer.

        A worker that goes has answered what it was at. The first that does not load in
        ``startup_timeout`` is a no; ``failure`` says why, and it is tried again in the background.
        """
        self.min_workers, self.max_workers = min_workers, max(min_workers, max_workers)
        while len(self._staying()) > (self.max_workers if min_workers else 0):
            idle = [worker for worker in self._staying() if not worker.jobs]
            (idle or self._staying())[-1].drain()
        self._workers = [worker for worker in self._workers if not worker.given_up]
        started = [self._add() for _ in range(min_workers - len(self._staying()))]
        if not min_workers:
            await self._until(lambda: not self._workers)
            self._drop_model_process()
            self._refuse_all()
        self._share_cores()
        await self._until(lambda: all(one.state == "READY" or one.failed or one.leaving for one in started))
        await self._until(lambda: not any(one.leaving for one in self._workers))
        return not any(one.failed or one.leaving for one in started)

    async def described(self) -> None:
        """Wait until a handler has loaded and described its tensors, or no worker will load."""
        await self._until(lambda: self.description or self.failure or self._closed or not self.min_workers)

    async def drain(self, seconds: float) -> bool:
        """Wait until nothing waits or is worked at, at the most so long; tell whether it came to that."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._until(lambda: not self.busy), seconds)
        return not self.busy

    async def close(self) -> None:
        """End every worker; who waits is answered 503."""
        self._closed = True
        self.min_workers = 0
        self._sweeper.cancel()
        self._refuse_all()
        for worker in list(self._workers):
            worker.kill(self._unavailable())
        self._drop_model_process()
        self._changed.set()

    # The queue.

    def _admit(self, pending: int) -> None:
        """Refuse a request if no worker will answer, or ``pending`` requests fill the queue."""
        if not self.min_workers or self._closed:
            raise self._unavailable()
        if self.failure and not self.ready:
            raise self._unavailable(_DO_NOT_LOAD)
        if pending >= self.options.queue_size:
            state = "" if self.ready else " while its workers are still being loaded"
            raise self._unavailable(_QUEUE_FULL.format(pending, state, self.options.queue_size))
        if self.options.job_tickets and not self._idle:
            raise self._unavailable(_NO_TICKET)

    def _schedule(self) -> None:
        """Dispatch at the end of this turn of the loop: requests that arrive together share a batch, and none waits."""
        if self._idle and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._idle and self._queue:
            if not (batch := self._batch()):
                return
            self._idle.pop().send_batch(batch)

    def _batch(self) -> list[Job]:
        """Take requests of one kind from the queue, in their order; others keep their places."""
        queue, size = self._queue, self.options.batch_size
        batch: list[Job] = []
        others: list[Job] = []
        kind = ""
        now = time.monotonic()
        while queue and len(batch) < size:
            job = queue.popleft()
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
        queue.extendleft(reversed(others))
        return batch

    def _refuse_all(self, why: str = "") -> None:
        while self._queue:
            self._queue.popleft().refuse(self._unavailable(why))

    def _sweep(self) -> None:
        """Reply to expired jobs, kill workers whose response timeout has passed."""
        now = time.monotonic()
        if expired := [job for job in self._queue if job.expired(now)]:
            self._queue = deque(job for job in self._queue if not job.expired(now))
            for job in expired:
                job.expire()
        for worker in self._workers:
            if worker.jobs and now - worker.since > self.options.response_timeout:
                seconds = f"{self.options.response_timeout:g} s"
                worker.log(logging.WARNING, f"did not answer within {seconds} and is restarted")
                worker.kill(again=True)
        self._sweeper = self._loop.call_later(_SWEEP, self._sweep)

    # The workers.

    def _staying(self) -> list[_Worker]:
        return [worker for worker in self._workers if not worker.leaving]

    def _add(self) -> _Worker:
        taken = [worker.gpu for worker in self._staying()]
        device = min(self.options.devices, key=taken.count, default=None)
        worker = _Worker(self, device)
        self._workers.append(worker)
        worker.task = self._loop.create_task(self._start(worker))
        return worker

    async def _start(self, worker: _Worker) -> None:
        """Bring a worker up; try again, later each time, until it loads or it is no use."""
        if worker.deaths:  # a fork that dies as soon as it is up must not be made again without end
            await asyncio.sleep(_BACK_OFF[min(worker.deaths - 1, len(_BACK_OFF) - 1)])
        begun = time.monotonic()
        for attempt in itertools.count():
            worker.state = "LOADING" if not attempt else "UNLOADING"
            tried = time.monotonic()
            try:
                await self._bring_up(worker)
            except (LoadFailed, WorkerError, OSError) as error:
                if isinstance(error, ParentEnded) and attempt < _PATIENCE:
                    worker.log_output(str(error))
                    continue
                self.failure = str(error).rstrip()
                worker.failed = True
                if not self.ready:
                    self._refuse_all(_DO_NOT_LOAD)  # nothing says that the next attempt succeeds
                self._changed.set()
                worker.log_output(_ENDED)
                for line in self.failure.splitlines():
                    worker.log_output(line)
                if time.monotonic() - begun > self.options.retry_seconds:
                    worker.log(logging.ERROR, f"is given up: it did not load in any of {attempt + 1} tries")
                    return
                await asyncio.sleep(_BACK_OFF[min(attempt + 1, len(_BACK_OFF) - 1)])
            else:
                seconds = time.monotonic() - tried
                self._tell.loaded(self.options.name, self.options.version, worker.id, seconds)
                worker.failed = worker.deaths >= _TOO_OFTEN
                self.failure = _DIES.format(worker.deaths) if worker.failed else ""
                self._share_cores()
                self._changed.set()
                return

    async def _bring_up(self, worker: _Worker) -> None:
        worker.log_output(f"s_name_part0=torchmar, s_name_part1={worker.id}, pid={os.getpid()}")
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                await worker.connect(ours, await self._process(worker, theirs))
            except BaseException:
                ours.close()
                raise

    async def _process(self, worker: _Worker, connection: socket.socket) -> WorkerProcess:
        """Return a process that has the model and serves on a connection."""
        self._log_mode()
        async with self._growing:  # where workers are forks the first loads, and the others share what it loaded
            if self._model_process and not self._model_process.gone:
                return await self._model_process.fork(connection, worker.log_output, worker.stage)
            self._model_process = None
            if self._shares:
                model_process, why = await self._spawn(worker, share=True)
                if not why:
                    self._model_process = model_process
                    return await model_process.fork(connection, worker.log_output, worker.stage)
                level = logging.WARNING if self.options.fork == forking.ALLOWED else logging.INFO
                worker.log(level, f"has loaded the model for itself, as each will: {why}")
                self._shares = False
                worker.model_process = model_process
                return model_process.serve(connection, worker.stage)
        model_process, _ = await self._spawn(worker, share=False)
        if model_process.shared_bytes:
            worker.log(
                logging.INFO, f"has {model_process.shared_bytes >> 20} MiB of weights in memory that workers share"
            )
        worker.model_process = model_process
        return model_process.serve(connection, worker.stage)

    def _log_mode(self) -> None:
        """Log once whether workers are forks of one process that has loaded the model, and why."""
        if self._mode_logged:
            return
        self._mode_logged = True
        options = self.options
        how = "workers are forks of one process that loads the model" if self._shares else "each worker loads the model"
        reason = "workers that use a GPU cannot be forks" if options.devices else options.fork_reason
        about = {"model": options.name, "version": options.version}
        logs.SERVER.info("%s %s: %s: %s", options.name, options.version, how, reason or "the default", extra=about)

    async def _spawn(self, worker: _Worker, *, share: bool) -> tuple[ModelProcess, str]:
        """Return a process that has the model loaded, and why it should not be forked."""
        options = self.options
        job = {
            "name": options.name,
            "model_dir": options.folder,
            "handler": options.handler,
            "envelope": options.envelope,
            "batch_size": options.batch_size,
            "gpu": worker.gpu,
            "requirements": options.requirements,
            "metrics_config": options.metrics_config,
            "limit_max_image_pixels": options.limit_max_image_pixels,
            "memory_limit": options.memory_limit,
            "poll": options.poll / 1e6,
            "stage": options.stage,
            "fork": options.fork if share else forking.NEVER,
        }
        if self._weights is None and not options.devices and shared_weights.available():
            self._weights = shared_weights.WeightsFile()
        model_process = await self._fork_server.spawn(job, worker.log_output, self._weights)
        try:
            why = await model_process.loaded(options.startup_timeout or None)
            self.description = model_process.description
            return model_process, why
        except BaseException:
            model_process.kill()
            raise

    def on_exit(self, worker: _Worker, *, again: bool) -> None:
        """Take note that a worker's process has ended."""
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.leaving or self._closed or not again:
            if worker in self._workers:
                self._workers.remove(worker)
        else:
            worker.task = self._loop.create_task(self._start(worker))
        self._changed.set()

    def _drop_model_process(self) -> None:
        self._weights = None
        if self._model_process:
            self._model_process.close()
            self._model_process = None

    def _share_cores(self) -> None:
        """Have the workers together use no more threads than there are cores."""
        threads = self._threads()
        for worker in self._workers:
            worker.limit_threads(threads)

    def _threads(self) -> int:
        """Return how many threads each worker may use."""
        return max(1, cores() // max(1, self.min_workers))

    def on_idle(self, worker: _Worker) -> None:
        """Give a worker that has come up or answered what waits next, or let it go."""
        if worker.leaving:
            worker.kill()
            return
        if self._queue and (batch := self._batch()):
            worker.send_batch(batch)
        else:
            self._idle.append(worker)
        self._changed.set()

    def requeue(self, jobs: Sequence[Job]) -> None:
        """Put requests back before all others; each is asked alone, since one of them ended a worker."""
        for job in jobs:
            job.isolated = True
        self._queue.extendleft(reversed(jobs))
        self._schedule()

    async def _until(self, true: Any) -> None:
        while not true():
            self._changed.clear()
            await self._changed.wait()

    def _unavailable(self, why: str = "") -> ApiError:
        """Return the error for a request that is not run; without ``why`` there are no workers."""
        # As for a request that names no version; who knows better says so.
        message = f'Model "{self.options.name}" {why or _NO_WORKER}'
        seconds = _RETRY_SECONDS if why else _RETRY_WITHOUT_WORKERS_SECONDS
        return ApiError(503, "ServiceUnavailableException", message, {"Retry-After": str(seconds)})


class _Worker(asyncio.Protocol):
    """One worker: its process, the connection to it, and the batch that it is at."""

    def __init__(self, pool: Pool, gpu: int | None) -> None:
        self.id = str(next(_ids))
        self.gpu = gpu
        self.state: State = "LOADING"
        self.started = time.time()
        self.leaving = self.failed = False
        self.jobs: list[Job] = []
        self.since = 0.0
        self.deaths = 0  # in a row, without an answer in between
        self.model_process: ModelProcess | None = None
        self.task: asyncio.Task[None] | None = None
        self._pool = pool
        self._process: WorkerProcess | None = None
        self._threads = 0
        self._transport: asyncio.Transport | None = None
        self._quick = False  # whether the last batch was answered sooner than it pays to fall asleep
        self._data = bytearray()
        self._wanted = 0  # bytes, before there is a whole frame of it
        self._refusal: ApiError | None = None

    @property
    def stage(self) -> str:
        return self._pool.options.stage

    @property
    def given_up(self) -> bool:
        """Whether it is down and will not be restarted."""
        return self.state != "READY" and self.task is not None and self.task.done()

    def info(self) -> WorkerInfo:
        pid, memory = (self._process.pid, self._process.memory()) if self._process else (0, 0)
        return WorkerInfo(self.id, self.state, pid, self.started, self.gpu, memory)

    def log_output(self, line: str) -> None:
        options = self._pool.options
        logs.worker_says(self.id, options.name, options.version, line)

    def log(self, level: int, what: str) -> None:
        """Log something of this worker in the server's own log."""
        options = self._pool.options
        about = {"model": options.name, "version": options.version, "worker": self.id}
        logs.SERVER.log(level, "%s %s worker %s %s", options.name, options.version, self.id, what, extra=about)

    async def connect(self, connection: socket.socket, process: WorkerProcess) -> None:
        connection.setblocking(False)
        self._process, self.state = process, "READY"
        self._data = bytearray()
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=connection)

    def limit_threads(self, count: int) -> None:
        if self._transport and count != self._threads:
            self._threads = count
            self._transport.writelines(frames.encode(frames.THREADS, count))

    def send_batch(self, batch: list[Job]) -> None:
        """Send a batch to the process."""
        self.jobs, self.since = batch, time.monotonic()
        document = []
        bodies: list[Any] = []
        for job in batch:
            document.append([job.request_id, job.headers, [(one[0], one[1], len(one[2])) for one in job.inputs]])
            bodies += [one[2] for one in job.inputs]
        assert self._transport
        buffers = frames.encode(frames.BATCH, document, bodies)
        size = sum(map(len, bodies))
        # One call to the system for what is small; what is large is not copied together.
        if size < _SMALL:
            self._transport.write(b"".join(buffers))
        else:
            self._transport.writelines(buffers)
        if self._quick and len(batch) == 1 and not self._pool._queue:
            self._pool._awake.stay(lambda: self.jobs)

    def drain(self) -> None:
        """Go as soon as the batch at hand is answered."""
        self.leaving = True
        if self.state != "READY":
            self.kill()
        elif not self.jobs:
            self._pool._idle.remove(self)
            self.kill()

    def kill(self, refusal: ApiError | None = None, *, again: bool = False) -> None:
        """End the process at once; requests that it is at are answered with ``refusal``."""
        self._refusal = refusal
        if not again:
            self.leaving = True
        if self.task and self.state != "READY":
            self.task.cancel()
        if self._process:
            self._process.kill()
        if self._transport:
            self._transport.abort()
        else:
            self._pool.on_exit(self, again=False)

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._threads = 0
        self.started = time.time()
        self._pool.on_idle(self)

    def data_received(self, data: bytes) -> None:
        if self._data:
            self._data += data
            if len(self._data) < self._wanted:
                return
            data = self._data  # type: ignore[assignment]
        view, place, self._wanted = memoryview(data), 0, frames.HEAD.size
        while len(view) - place >= frames.HEAD.size:
            kind, text, bodies = frames.HEAD.unpack_from(view, place)
            start = place + frames.HEAD.size
            end = start + text + bodies
            if len(view) < end:
                self._wanted = end - place
                break
            self._take(kind, frames.loads(view[start : start + text]), view[start + text : end])
            place = end
        self._data = bytearray(view[place:])

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._process:
            self._process.kill()  # should it live without its connection
            self._process.close()
            self._process = None
        if self.model_process:
            self.model_process.close()
            self.model_process = None
        jobs, self.jobs = self.jobs, []
        refusal, self._refusal = self._refusal, None
        self.state = "UNLOADING"
        self.deaths += 1
        if not self.leaving:
            self.log_output(_ENDED)
        if refusal is None and len(jobs) > 1:
            # One of them has ended the worker, or kept it too long; the others need not suffer for it.
            self._pool.requeue([job for job in jobs if not job.cancelled])
            jobs = []
        for job in jobs:
            job.refuse(refusal or ApiError(500, "InternalServerException", _DIED))
        self._pool.on_exit(self, again=not self.leaving)

    def _take(self, kind: int, document: Any, bodies: memoryview) -> None:
        if kind == frames.PART:
            index, status, content_type, headers, _, message = document
            job = self.jobs[index]
            if not job.cancelled:
                job.on_reply(Reply(status, bytes(bodies), content_type, headers, more=True, message=message))
            return
        jobs, self.jobs = self.jobs, []
        self.deaths = 0
        pool, options = self._pool, self._pool.options
        since = self.since
        self._quick = time.monotonic() - since < pool._awake.seconds
        pool.on_idle(self)  # the next batch first: the worker need not wait for these replies
        start = 0
        for job, (status, content_type, headers, size, message) in zip(jobs, document["answers"], strict=True):
            if not job.cancelled:
                body = bytes(bodies[start : start + size])
                job.on_reply(Reply(status, body, content_type, headers, False, message))
            start += size
        pool._tell.batch(
            options.name, options.version, len(jobs), [since - job.since for job in jobs], document["seconds"]
        )
        if updates := document.get("metrics"):
            pool._tell.custom(options.name, options.version, updates)
