"""The pool of a version in stages: some workers run the model, others preprocess requests or postprocess outputs.

A request passes through the stages. Between two of them it is in a shared buffer, which the server creates but does not
read: the first stage writes to it, the second reads it. Workers get its address, a path in ``/proc`` to the server's
    open
file; the system frees it with the last process that has it open or mapped, so that no process, including the server,
leaves a buffer behind if it dies.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torchmar.server.telemetry.spans import JobSpans
from torchmar.server.workers import unavailable
from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.jobs import Job, Part, Reply
from torchmar.server.workers.model_loader import Loader
from torchmar.server.workers.pool import Pool
from torchmar.server.workers.pool_options import PoolObserver, PoolOptions, WorkerInfo
from torchmar.worker.process.messages import ModelDescription
from torchmar.worker.process.stages import INFERENCE, PASSED_ON, POSTPROCESS, PREPROCESS, SOURCE, TARGET

_AHEAD = 2  # batches for each worker of the next stage; requests there take memory, those that wait before take little


def available() -> bool:
    """Return whether the system supports stages, which need memory files and ``/proc`` of Linux."""
    return hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")  # noqa: PTH112


def create_pool(
    fork_server: ForkServer, options: PoolOptions, observer: PoolObserver, loader: Loader | None = None
) -> Pool | StagedPool:
    """Return the pool of a version, in stages if ``options`` has workers for stages; ``loader`` is as for `Pool`."""
    return (StagedPool if options.stages else Pool)(fork_server, options, observer, loader=loader)


class StagedPool:
    """A pool of workers with the model, and pools of workers that preprocess before it or postprocess after it.

    ``scale``, ``min_workers`` and ``workers`` concern the workers with the model. The number of the other workers is
    that of ``options``, while any worker has the model. The other workers have no GPU, run one request at a time, and
    pause while enough requests wait for the next stage. Explanations and descriptions run as a whole in the workers
    with the model.
    """

    def __init__(
        self, fork_server: ForkServer, options: PoolOptions, observer: PoolObserver, *, loader: Loader | None = None
    ) -> None:
        self.options = options
        self._fork_server, self._observer = fork_server, observer
        self._inference = Pool(
            fork_server,
            replace(options, stage=INFERENCE),
            observer,
            loader=loader,
            has_room=self._has_room_after_model if options.postprocess_workers else None,
            on_batch=(lambda: self._others[PREPROCESS].schedule()) if options.preprocess_workers else None,
        )
        self._others: dict[str, Pool] = {}  # pools by stage, in the order of the stages
        if options.preprocess_workers:
            self._others[PREPROCESS] = self._add_stage(PREPROCESS, has_room=self._has_room_before_model)
        if options.postprocess_workers:
            self._others[POSTPROCESS] = self._add_stage(POSTPROCESS, on_batch=self._inference.schedule)
        self._counts = {PREPROCESS: options.preprocess_workers, POSTPROCESS: options.postprocess_workers}
        self._passage = [self._inference if name == INFERENCE else self._others[name] for name in options.stages]

    def _add_stage(
        self, stage: str, *, has_room: Callable[[], bool] | None = None, on_batch: Callable[[], None] | None = None
    ) -> Pool:
        return Pool(
            self._fork_server,
            replace(self.options, stage=stage, batch_size=1, devices=(), job_tickets=False),
            _StageObserver(self._observer),
            # The model is loaded once for all stages, but not to a GPU, which only one stage needs.
            loader=None if self.options.devices else self._inference.loader,
            has_room=has_room,
            on_batch=on_batch,
        )

    @property
    def min_workers(self) -> int:
        """The number of workers with the model that should run."""
        return self._inference.min_workers

    @min_workers.setter
    def min_workers(self, count: int) -> None:
        self._inference.min_workers = count

    @property
    def max_workers(self) -> int:
        """The largest number of workers with the model."""
        return self._inference.max_workers

    @property
    def ready(self) -> int:
        """The number of ready workers with the model; 0 while another stage has no ready worker."""
        return self._inference.ready if all(pool.ready for pool in self._others.values()) else 0

    @property
    def pending(self) -> int:
        """The number of requests that wait before any stage."""
        return sum(pool.pending for pool in self._passage)

    @property
    def busy(self) -> bool:
        """Whether any request waits or is run, in any stage."""
        return any(pool.busy for pool in self._passage)

    @property
    def failure(self) -> str:
        """The traceback of the last worker of any stage that did not load or exited."""
        return self._inference.failure or next((pool.failure for pool in self._passage if pool.failure), "")

    @property
    def given_up(self) -> bool:
        """Whether the workers of a stage will not be restarted."""
        return any(pool.given_up for pool in self._passage)

    @property
    def description(self) -> ModelDescription:
        """The handler's description of its tensors; empty until it has loaded once."""
        return self._inference.description

    @property
    def signature(self) -> tuple[object, ...]:
        """A value that changes with the workers of any stage."""
        return tuple(pool.signature for pool in self._passage)

    def workers(self) -> list[WorkerInfo]:
        """Return the state of each worker with the model."""
        return self._inference.workers()

    def stage_workers(self) -> dict[str, list[WorkerInfo]]:
        """Return the state of each worker of the other stages, by stage."""
        return {name: pool.workers() for name, pool in self._others.items()}

    def submit(self, job: Job) -> None:
        """Run a request; its ``on_reply`` is called with the reply.

        Raises:
            ApiError: for the reasons of `admit`.
        """
        self.admit(job.batch_kind, job.deadline)
        self.enqueue(job)

    def admit(self, kind: str, deadline: float | None) -> None:
        """Check whether a request that arrives now can be run, in all stages; see `Pool.admit`."""
        if kind:
            self._inference.admit(kind, deadline)
            return
        pending = self.pending
        for pool in (self._inference, *self._others.values()):
            pool.check_room(pending)
        if deadline is not None:
            seconds = sum(pool.seconds_until_reply("") for pool in self._passage)
            unavailable.check_deadline(self.options, deadline, seconds, self._inference.pending)

    def enqueue(self, job: Job) -> None:
        """Run a request that `admit` has accepted."""
        # Only the server may set these addresses, not a client.
        job.inputs = [part for part in job.inputs if part.name not in (SOURCE, TARGET)]
        if job.batch_kind:
            self._inference.enqueue(job)
        else:
            self._run(job, self._passage, job.headers, job.inputs)

    def _run(
        self,
        job: Job,
        stages: Sequence[Pool],
        headers: Mapping[str, str],
        inputs: Sequence[Part],
        source: _SharedBuffer | None = None,
    ) -> None:
        """Run a request in the first of ``stages``, then in the others, unless the first one replies to it.

        Args:
            job: the request.
            stages: the remaining stages.
            headers: headers of the request; empty if it is in ``source``.
            inputs: parts of the request; empty if it is in ``source``.
            source: buffer in which the previous stage has written the request; None: there was no stage before.
        """
        stage, *later = stages
        # A new buffer: if the stage exits while it writes, its request is repeated with another one.
        target = _SharedBuffer() if later else None
        addresses = [Part(name, "", buffer.address) for name, buffer in ((SOURCE, source), (TARGET, target)) if buffer]

        def on_reply(reply: Reply) -> None:
            if target and PASSED_ON in reply.headers:
                if source:
                    source.free()
                # The response headers of the previous stages are in the buffer.
                self._run(job, later, {}, [], target)
                return
            if not reply.more:
                for buffer in (source, target):
                    if buffer:
                        buffer.free()
            job.on_reply(reply)

        stage.enqueue(StageJob(job, stage.options.stage, headers, [*inputs, *addresses], on_reply))

    async def scale(self, min_workers: int, max_workers: int) -> bool:
        """Scale the workers with the model; see `Pool.scale`."""
        if not min_workers:  # each stage depends on the one before it
            for pool in self._passage:
                await pool.scale(0, max_workers if pool is self._inference else 0)
            return True
        others = (pool.scale(self._counts[name], self._counts[name]) for name, pool in self._others.items())
        return all(await asyncio.gather(self._inference.scale(min_workers, max_workers), *others))

    async def described(self) -> None:
        """Wait until a handler has loaded and described its tensors, or all workers have failed."""
        await self._inference.described()

    async def drain(self, seconds: float) -> bool:
        """Wait until no request waits or runs in any stage; see `Pool.drain`."""
        deadline = time.monotonic() + seconds
        for pool in self._passage:
            await pool.drain(max(0.0, deadline - time.monotonic()))
        return not self.busy

    async def close(self) -> None:
        """Kill all workers; waiting and running requests get a 503."""
        for pool in self._passage:
            await pool.close()

    def _has_room_before_model(self) -> bool:
        """Return whether the workers with the model will soon need more requests than wait for them."""
        inference = self._inference
        return inference.pending < _AHEAD * self.options.batch_size * max(1, inference.ready)

    def _has_room_after_model(self) -> bool:
        """Return whether the workers after the model will soon need more outputs than wait for them."""
        postprocess = self._others[POSTPROCESS]
        return postprocess.pending < _AHEAD * max(self.options.batch_size, postprocess.ready)


class StageJob(Job):
    """A request in one stage; it is cancelled with the whole request."""

    __slots__ = ("_whole",)

    def __init__(
        self,
        whole: Job,
        stage: str,
        headers: Mapping[str, str],
        inputs: Sequence[Part],
        on_reply: Callable[[Reply], None],
    ) -> None:
        self._whole = whole
        spans = JobSpans(whole.spans.request, stage) if whole.spans is not None else None
        super().__init__(whole.request_id, headers, inputs, on_reply, whole.deadline, spans)
        self.since = whole.since

    @property
    def cancelled(self) -> bool:
        return self._whole.cancelled

    @cancelled.setter
    def cancelled(self, value: bool) -> None:
        self._whole.cancelled = self._whole.cancelled or value


class _SharedBuffer:
    """Memory that grows when it is written to, and that processes of this user can open.

    Attributes:
        address: path and inode, for `torchmar.worker.process.shared_memory`; the path alone may be reused after `free`.
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
    """An observer of a stage that counts no batches, because the stage of the model counts them."""

    def __init__(self, observer: PoolObserver) -> None:
        self.on_load, self.on_load_failed, self.on_death = observer.on_load, observer.on_load_failed, observer.on_death
        self.on_metrics, self.on_unregister = observer.on_metrics, observer.on_unregister

    def on_batch(
        self, name: str, version: str, size: int, queue_seconds: Sequence[float], handler_seconds: float
    ) -> None:
        pass
