"""One worker of a pool: it starts its process, restarts it with growing pauses, and runs one batch at a time in it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, Protocol

from torchmar.errors import WorkerError
from torchmar.server.api_error import ApiError
from torchmar.server.telemetry import spans
from torchmar.server.workers.batch_times import BatchTimes
from torchmar.server.workers.jobs import Job, Reply
from torchmar.server.workers.model_loader import Loader
from torchmar.server.workers.model_process import ForkServerExitedError, ModelLoadError
from torchmar.server.workers.pool_options import PoolObserver, PoolOptions, State, WorkerInfo
from torchmar.server.workers.worker_connection import WorkerConnection
from torchmar.server.workers.worker_log import WorkerLog
from torchmar.server.workers.worker_process import WorkerProcess
from torchmar.worker.process import frames

_BACK_OFF = (0.0, 1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0)  # seconds, the same as TorchServe's
_DIED = "Worker died."
_ENDED = "Backend worker process died."
_TOO_OFTEN = 3  # exits in a row, without a response in between
_DIES = "a worker ended {} times in a row before it answered; the log of the workers has its output"
_FORK_SERVER_EXITS = 3  # consecutive exits of the fork server, which are not the model's fault
_ids = itertools.count(9000)  # TorchServe names its workers by their ports


class WorkerOwner(Protocol):
    """The pool of a worker.

    Attributes:
        batch_times: times of its batches, if they are measured.
    """

    batch_times: BatchTimes | None

    def on_idle(self, worker: Worker) -> None:
        """Send the next batch, or keep the worker idle; it has started, or has sent its replies."""

    def on_loaded(self, worker: Worker) -> None:
        """Record that the worker's process has loaded the model."""

    def on_load_failed(self, worker: Worker) -> None:
        """Record that the model did not load; the worker will try again."""

    def on_exit(self, worker: Worker) -> None:
        """Record that the worker's process has exited; it is restarted unless the worker drains."""

    def repeat(self, jobs: Sequence[Job]) -> None:
        """Run jobs again, because one of them may have ended the worker."""


class Worker:
    """A worker of a version.

    Attributes:
        id: its name in logs and in the API.
        gpu: index of its device; None: the CPU.
        state: TorchServe's name for its state.
        jobs: the batch that is running; empty: none.
        batch_started: time when the batch was sent, by `time.monotonic`.
        draining: whether the worker ends after its current batch.
        failure: reason why its model did not load, or a message that it exits too often; otherwise empty.
        fast: whether the last batch took less time than the server busy-polls.
    """

    def __init__(
        self,
        options: PoolOptions,
        gpu: int | None,
        *,
        loader: Loader,
        observer: PoolObserver,
        owner: WorkerOwner,
    ) -> None:
        self.id = str(next(_ids))
        self.gpu = gpu
        self.state: State = "LOADING"
        self.jobs: list[Job] = []
        self.batch_started = 0.0
        self.draining = False
        self.failure = ""
        self.fast = False
        self._options, self._loader, self._observer, self._owner = options, loader, observer, owner
        self._log = WorkerLog(self.id, options)
        self._poll_seconds = options.poll / 1e6
        self._started_at = time.time()
        self._exits = 0  # consecutive exits without a response
        self._process: WorkerProcess | None = None
        self._connection: WorkerConnection | None = None
        self._error: ApiError | None = None
        self._task = asyncio.get_running_loop().create_task(self._start())

    @property
    def given_up(self) -> bool:
        """Whether it is not running and will not be restarted."""
        return self.state != "READY" and self._task.done()

    @property
    def signature(self) -> tuple[str, State, float]:
        """A value that changes with its state and with each start; cheaper than `info`."""
        return self.id, self.state, self._started_at

    def info(self) -> WorkerInfo:
        """Return its state."""
        pid, memory = (self._process.pid, self._process.memory()) if self._process else (0, 0)
        return WorkerInfo(id=self.id, state=self.state, pid=pid, started=self._started_at, gpu=self.gpu, memory=memory)

    def send_batch(self, batch: list[Job]) -> None:
        """Send a batch to the process."""
        self.jobs, self.batch_started = batch, time.monotonic()
        assert self._connection
        self._connection.send_batch(batch)

    def limit_threads(self, count: int) -> None:
        """Limit the number of threads of the process."""
        if self._connection:
            self._connection.limit_threads(count)

    def drain(self) -> None:
        """End after the current batch."""
        self.draining = True
        if self.state != "READY" or not self.jobs:
            self.kill()

    def time_out(self) -> None:
        """Kill and restart the process, because it has not responded in time."""
        self._log.server(
            logging.WARNING, f"did not answer within {self._options.response_timeout:g} s and is restarted"
        )
        self._kill_process()

    def kill(self, error: ApiError | None = None) -> None:
        """End at once; the requests of its batch get an error."""
        self._error = error
        self.draining = True
        if self.state != "READY":
            self._task.cancel()
        self._kill_process()
        if not self._connection:
            self._owner.on_exit(self)

    def _kill_process(self) -> None:
        if self._process:
            self._process.kill()
        if self._connection:
            self._connection.abort()

    async def _start(self) -> None:
        """Start the process; try again, with growing pauses, until the model loads or ``retry_seconds`` have passed."""
        if self._exits:  # a process that exits at once must not be restarted in a tight loop
            await asyncio.sleep(_BACK_OFF[min(self._exits - 1, len(_BACK_OFF) - 1)])
        started = time.monotonic()
        for attempt in itertools.count():
            self.state = "UNLOADING" if attempt else "LOADING"
            attempt_started = time.monotonic()
            try:
                await self._start_process()
            except (ModelLoadError, WorkerError, OSError) as error:
                if isinstance(error, ForkServerExitedError) and attempt < _FORK_SERVER_EXITS:
                    self._log.output(str(error))
                    continue
                self._on_load_failed(str(error).rstrip())
                if time.monotonic() - started > self._options.retry_seconds:
                    self._log.server(logging.ERROR, f"is given up: it did not load in any of {attempt + 1} tries")
                    return
                await asyncio.sleep(_BACK_OFF[min(attempt + 1, len(_BACK_OFF) - 1)])
            else:
                self._on_loaded(time.monotonic() - attempt_started)
                return

    async def _start_process(self) -> None:
        self._log.output(f"s_name_part0=torchmar, s_name_part1={self.id}, pid={os.getpid()}")
        own_end, worker_end = socket.socketpair()
        with worker_end:
            try:
                self._process = await self._loader.start_worker(
                    worker_end, self._log, gpu=self.gpu, stage=self._options.stage
                )
                self.state = "READY"
                own_end.setblocking(False)
                connection = WorkerConnection(lambda: self._on_open(connection), self._on_frame, self._on_close)
                await asyncio.get_running_loop().create_unix_connection(lambda: connection, sock=own_end)
            except BaseException:
                own_end.close()
                raise

    def _on_load_failed(self, failure: str) -> None:
        self.failure = failure
        self._owner.on_load_failed(self)
        self._observer.on_load_failed(self._options.name, self._options.version, self.id, failure)
        self._log.output(_ENDED)
        for line in failure.splitlines():
            self._log.output(line)

    def _on_loaded(self, seconds: float) -> None:
        self._observer.on_load(self._options.name, self._options.version, self.id, seconds)
        self.failure = _DIES.format(self._exits) if self._exits >= _TOO_OFTEN else ""
        self._owner.on_loaded(self)

    def _on_open(self, connection: WorkerConnection) -> None:
        self._connection = connection
        self._started_at = time.time()
        self._owner.on_idle(self)

    def _on_frame(self, kind: int, document: Any, bodies: Sequence[bytes]) -> None:
        if kind == frames.PART:
            index, status, content_type, headers, _, error = document
            job = self.jobs[index]
            if not job.cancelled:
                job.on_reply(Reply(status, bodies[0], content_type, headers, more=True, message=error))
            return
        jobs, self.jobs = self.jobs, []
        self._exits = 0
        options, started = self._options, self.batch_started
        seconds = time.monotonic() - started
        self.fast = seconds < self._poll_seconds
        if (times := self._owner.batch_times) is not None:
            times.record(jobs[0].batch_kind, len(jobs), seconds)
        self._owner.on_idle(self)  # first the next batch, so that the worker does not wait for these replies
        for job, body, (status, content_type, headers, _, error) in zip(
            jobs, bodies, document["responses"], strict=True
        ):
            if not job.cancelled:
                job.on_reply(Reply(status, body, content_type, headers, False, error))
        self._observer.on_batch(
            options.name, options.version, len(jobs), [started - job.since for job in jobs], document["seconds"]
        )
        if updates := document["metrics"]:
            self._observer.on_metrics(options.name, options.version, updates)
        if (steps := document.get("steps")) is not None:
            spans.end_batch(
                [job.spans for job in jobs],
                document["responses"],
                steps,
                worker=self.id,
                kind=jobs[0].batch_kind,
                stage=options.stage,
                stages=options.stages,
            )

    def _on_close(self) -> None:
        self._connection = None
        if self._process:
            self._process.kill()  # in case it runs although its connection is closed
            self._process.close()
            self._process = None
        jobs, self.jobs = self.jobs, []
        error, self._error = self._error, None
        self.state = "UNLOADING"
        self._exits += 1
        if not self.draining:
            self._log.output(_ENDED)
            self._observer.on_death(self._options.name, self._options.version, self.id)
        if error is None and len(jobs) > 1:
            # One of the jobs has ended the worker, or took too long; the others must not fail because of it.
            self._owner.repeat([job for job in jobs if not job.cancelled])
            jobs = []
        for job in jobs:
            job.reply_error(error or ApiError(500, "InternalServerException", _DIED))
        self._owner.on_exit(self)
        if not self.draining:
            self._task = asyncio.get_running_loop().create_task(self._start())
