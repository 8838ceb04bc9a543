"""A version's workers in two stages: some make tensors of requests, others have the model.

Every request gets memory of its own, which the server makes and never reads: the first stage writes there,
the second reads. The server hands on where it is, as a path in ``/proc`` to its own open file; the system frees
it with the last file that is open, so that nothing is left behind by whoever dies, the server included.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torchmar.server.telemetry.system_metrics import cores
from torchmar.server.workers.jobs import Job, Part, Reply
from torchmar.server.workers.pool import Pool, PoolObserver, PoolOptions, WorkerInfo, _Worker
from torchmar.server.workers.processes import ForkServer, WorkerProcess
from torchmar.worker.process.stages import INFERENCE, NAME, PREPROCESS

_AHEAD = 2  # batches for each worker that has the model: what is prepared takes memory, what waits before it little


def available() -> bool:
    """Tell whether the system has what stages take, which is Linux's."""
    return hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")  # noqa: PTH112


class StagedPool(Pool):
    """The workers that have the model, and before them a pool of those that preprocess.

    It is a pool of the former: ``scale`` is about these, ``min_workers`` and ``workers`` tell of them. Of the
    latter there are ``options.preprocess_workers`` as long as there is any of the former; they take one request at a
    time and have no GPU. Explanations and descriptions go to the workers with the model, whole.
    """

    def __init__(self, fork_server: ForkServer, options: PoolOptions, tell: PoolObserver) -> None:
        before = replace(options, stage=PREPROCESS, batch_size=1, devices=(), job_tickets=False)
        self._before = PreprocessPool(fork_server, before, _StageObserver(tell), self)
        super().__init__(fork_server, replace(options, stage=INFERENCE), tell)

    @property
    def ready(self) -> int:
        """The number of ready workers with the model; 0 without a ready worker that preprocesses."""
        return super().ready if self._before.ready else 0

    @property
    def pending(self) -> int:
        """How many requests wait, before either stage."""
        return self._before.pending + super().pending

    @property
    def busy(self) -> bool:
        """Whether any request waits or is being worked at, in either stage."""
        return self._before.busy or super().busy

    @property
    def failure(self) -> str:
        """The traceback of a worker of either stage that did not load or died last."""
        return self._failure or self._before.failure

    @failure.setter
    def failure(self, value: str) -> None:
        self._failure = value

    def preprocess_workers(self) -> list[WorkerInfo]:
        """Return the state of each worker that preprocesses."""
        return self._before.workers()

    def submit(self, job: Job) -> None:
        """Have a request answered; its ``done`` is called when it is.

        Raises:
            ApiError: 503; there is no worker, or as many requests wait as may.
        """
        # Where the memory is, the server alone says.
        job.inputs = [one for one in job.inputs if one.name != NAME]
        if job.batch_kind:
            super().submit(job)
            return
        self._admit(self.pending)
        memory = _SharedBuffer()
        inputs = [*job.inputs, Part(NAME, "", memory.address)]
        self._before.submit(StageJob(job, job.headers, inputs, partial(self._prepared, job, memory)))

    async def scale(self, min_workers: int, max_workers: int) -> bool:
        """Scale the workers with the model; see `Pool.scale`."""
        count = self.options.preprocess_workers if min_workers else 0
        if not min_workers:  # what they are at still comes to the others
            await self._before.scale(0, 0)
            return await super().scale(0, max_workers)
        both = await asyncio.gather(super().scale(min_workers, max_workers), self._before.scale(count, count))
        return all(both)

    async def drain(self, seconds: float) -> bool:
        """Wait until nothing waits or is worked at in either stage; see `Pool.drain`."""
        until = time.monotonic() + seconds
        await self._before.drain(seconds)
        return await super().drain(max(0.0, until - time.monotonic()))

    async def close(self) -> None:
        """End every worker; who waits is answered 503."""
        await self._before.close()
        await super().close()

    def has_room(self) -> bool:
        """Tell whether the workers with the model will soon want more than is prepared."""
        return len(self._queue) < _AHEAD * self.options.batch_size * max(1, super().ready)

    def _prepared(self, job: Job, memory: _SharedBuffer, reply: Reply) -> None:
        """Take a request's answer from the first stage, or have it go on."""
        if NAME not in reply.headers:
            self._answered(job, memory, reply)
            return
        # Its headers are in the memory already.
        done = partial(self._answered, job, memory)
        self._queue.append(StageJob(job, {}, [Part(NAME, "", memory.address)], done))
        self._schedule()

    @staticmethod
    def _answered(job: Job, memory: _SharedBuffer, reply: Reply) -> None:
        if not reply.more:
            memory.free()
        job.on_reply(reply)

    def _batch(self) -> list[Job]:
        batch = super()._batch()
        self._before.go_on()
        return batch

    def _sweep(self) -> None:
        super()._sweep()
        self._before.go_on()

    def _threads(self) -> int:
        # Those of the first stage have a core each.
        return max(1, (cores() - self.options.preprocess_workers) // max(1, self.min_workers))


class PreprocessPool(Pool):
    """The pool of the first stage, which rests while the second has enough to do."""

    def __init__(self, fork_server: ForkServer, options: PoolOptions, tell: PoolObserver, model: StagedPool) -> None:
        super().__init__(fork_server, options, tell)
        self._model = model

    def go_on(self) -> None:
        """Look again whether there is room."""
        if self._queue:
            self._schedule()

    def _batch(self) -> list[Job]:
        return super()._batch() if self._model.has_room() else []

    async def _process(self, worker: _Worker, connection: socket.socket) -> WorkerProcess:
        if self._model.options.devices:
            return await super()._process(worker, connection)
        return await self._model._process(worker, connection)  # the model is loaded once for both

    def _threads(self) -> int:
        return 1


class StageJob(Job):
    """A request as one stage sees it; cancelled with the request; its memory is freed with it."""

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
        address: path and inode, for `torchmar.worker.process.shared_memory`: of what was freed the path may come again.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("torchmar")
        inode = os.fstat(self._descriptor).st_ino
        self.address = f"/proc/{os.getpid()}/fd/{self._descriptor} {inode}".encode()

    def free(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # A request that is cancelled is dropped, by the queue or by the worker that was at it.
    __del__ = free


class _StageObserver:
    """Observes the first stage without counting requests, which the second counts."""

    def __init__(self, tell: PoolObserver) -> None:
        self._tell = tell
        self.loaded, self.forget, self.custom = tell.loaded, tell.forget, tell.custom

    def batch(self, name: str, version: str, size: int, queue_seconds: Sequence[float], handler_seconds: float) -> None:
        pass
