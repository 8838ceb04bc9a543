"""The pool of a version in two stages: some workers preprocess requests, others have the model.

Every request gets a shared buffer, which the server creates and never reads: the first stage writes there, the second
reads. Workers get its address, a path in ``/proc`` of the server's open file; the system frees it with the last process
that has it open or mapped, so that no process, the server included, leaves a buffer behind if it dies.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.jobs import Job, Part, Reply
from torchmar.server.workers.pool import Pool
from torchmar.server.workers.pool_options import PoolObserver, PoolOptions, WorkerInfo
from torchmar.worker.process.messages import ModelDescription
from torchmar.worker.process.stages import INFERENCE, NAME, PREPROCESS

_AHEAD = 2  # batches for each worker with the model: prepared requests take memory, waiting ones little


def available() -> bool:
    """Return whether the system supports stages, which need memory files and ``/proc`` of Linux."""
    return hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")  # noqa: PTH112


def create_pool(fork_server: ForkServer, options: PoolOptions, observer: PoolObserver) -> Pool | StagedPool:
    """Return the pool of a version, in stages if ``options.preprocess_workers`` is not 0."""
    return (StagedPool if options.preprocess_workers else Pool)(fork_server, options, observer)


class StagedPool:
    """A pool of workers with the model, and before it a pool of workers that preprocess.

    ``scale``, ``min_workers`` and ``workers`` are about the former. There are ``options.preprocess_workers`` of the
    latter as long as there is any of the former; these have no GPU and run one request at a time, and wait while enough
    prepared requests wait for the model. Explanations and descriptions are run by the workers with the model, whole.
    """

    def __init__(self, fork_server: ForkServer, options: PoolOptions, observer: PoolObserver) -> None:
        self.options = options
        self._inference = Pool(
            fork_server, replace(options, stage=INFERENCE), observer, on_batch=lambda: self._preprocess.schedule()
        )
        self._preprocess = Pool(
            fork_server,
            replace(options, stage=PREPROCESS, batch_size=1, devices=(), job_tickets=False),
            _StageObserver(observer),
            # The model is loaded once for both stages, but not to a GPU, which the first stage does not need.
            loader=None if options.devices else self._inference.loader,
            has_room=self._has_room,
        )

    @property
    def min_workers(self) -> int:
        """How many workers with the model there should be."""
        return self._inference.min_workers

    @min_workers.setter
    def min_workers(self, count: int) -> None:
        self._inference.min_workers = count

    @property
    def max_workers(self) -> int:
        """How many workers with the model there may be."""
        return self._inference.max_workers

    @property
    def ready(self) -> int:
        """The number of ready workers with the model; 0 without a ready worker that preprocesses."""
        return self._inference.ready if self._preprocess.ready else 0

    @property
    def pending(self) -> int:
        """The number of requests that wait, before either stage."""
        return self._preprocess.pending + self._inference.pending

    @property
    def busy(self) -> bool:
        """Whether any request waits or is run, in either stage."""
        return self._preprocess.busy or self._inference.busy

    @property
    def failure(self) -> str:
        """The traceback of a worker of either stage that did not load or exited last."""
        return self._inference.failure or self._preprocess.failure

    @property
    def description(self) -> ModelDescription:
        """The tensors of the handler; empty until it has loaded once."""
        return self._inference.description

    def workers(self) -> list[WorkerInfo]:
        """Return the state of each worker with the model."""
        return self._inference.workers()

    def preprocess_workers(self) -> list[WorkerInfo]:
        """Return the state of each worker that preprocesses."""
        return self._preprocess.workers()

    def submit(self, job: Job) -> None:
        """Run a request; its ``on_reply`` is called with the reply.

        Raises:
            ApiError: 503; there is no worker, or the queue is full.
        """
        # Only the server sets addresses.
        job.inputs = [part for part in job.inputs if part.name != NAME]
        if job.batch_kind:
            self._inference.submit(job)
            return
        self._inference.admit(self.pending)
        buffer = _SharedBuffer()
        inputs = [*job.inputs, Part(NAME, "", buffer.address)]
        self._preprocess.submit(StageJob(job, job.headers, inputs, partial(self._on_preprocess_reply, job, buffer)))

    async def scale(self, min_workers: int, max_workers: int) -> bool:
        """Scale the workers with the model; see `Pool.scale`."""
        count = self.options.preprocess_workers if min_workers else 0
        if not min_workers:  # the second stage runs what the first has prepared
            await self._preprocess.scale(0, 0)
            return await self._inference.scale(0, max_workers)
        loaded = await asyncio.gather(
            self._inference.scale(min_workers, max_workers), self._preprocess.scale(count, count)
        )
        return all(loaded)

    async def described(self) -> None:
        """Wait until a handler has loaded and described its tensors, or no worker will load."""
        await self._inference.described()

    async def drain(self, seconds: float) -> bool:
        """Wait until no request waits or is run in either stage; see `Pool.drain`."""
        deadline = time.monotonic() + seconds
        await self._preprocess.drain(seconds)
        return await self._inference.drain(max(0.0, deadline - time.monotonic()))

    async def close(self) -> None:
        """Kill every worker; requests that wait or are run get a 503."""
        await self._preprocess.close()
        await self._inference.close()

    def _has_room(self) -> bool:
        """Return whether the workers with the model will soon need more requests than are prepared."""
        inference = self._inference
        return inference.pending < _AHEAD * self.options.batch_size * max(1, inference.ready)

    def _on_preprocess_reply(self, job: Job, buffer: _SharedBuffer, reply: Reply) -> None:
        """Send the reply of the first stage to the client, or the prepared request to the second stage."""
        on_reply = partial(_reply, job, buffer)
        if NAME in reply.headers:
            # The response headers so far are in the buffer already.
            self._inference.enqueue(StageJob(job, {}, [Part(NAME, "", buffer.address)], on_reply))
        else:
            on_reply(reply)


def _reply(job: Job, buffer: _SharedBuffer, reply: Reply) -> None:
    if not reply.more:
        buffer.free()
    job.on_reply(reply)


class StageJob(Job):
    """A request in one stage, which is cancelled with the whole request."""

    __slots__ = ("_whole",)

    def __init__(
        self, whole: Job, headers: Mapping[str, str], inputs: Sequence[Part], on_reply: Callable[[Reply], None]
    ) -> None:
        self._whole = whole
        super().__init__(whole.request_id, headers, inputs, on_reply, whole.deadline)
        self.since = whole.since

    @property
    def cancelled(self) -> bool:
        return self._whole.cancelled

    @cancelled.setter
    def cancelled(self, value: bool) -> None:
        self._whole.cancelled = self._whole.cancelled or value


class _SharedBuffer:
    """Memory that grows as it is written to, and that processes of this user can open.

    Attributes:
        address: path and inode, for `torchmar.worker.process.shared_memory`: the path may be used again after `free`.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("torchmar")
        inode = os.fstat(self._descriptor).st_ino
        self.address = f"/proc/{os.getpid()}/fd/{self._descriptor} {inode}".encode()

    def free(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # The queue, or the worker that ran it, drops a cancelled request.
    __del__ = free


class _StageObserver:
    """Observes the first stage without counting batches, which the second counts."""

    def __init__(self, observer: PoolObserver) -> None:
        self.on_load, self.on_metrics, self.on_unregister = (
            observer.on_load,
            observer.on_metrics,
            observer.on_unregister,
        )

    def on_batch(
        self, name: str, version: str, size: int, queue_seconds: Sequence[float], handler_seconds: float
    ) -> None:
        pass
