"""The types of a pool's interface: its options, the state of its workers, and its observer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torchmar.server_config import Replica
from torchmar.worker.process import forking
from torchmar.worker.process.messages import MetricUpdate
from torchmar.worker.process.stages import INFERENCE, POSTPROCESS, PREPROCESS

State = Literal["READY", "LOADING", "UNLOADING"]


class PoolObserver(Protocol):
    """Callbacks for batch, load and metrics events; see `torchmar.server.telemetry.observer`."""

    def on_batch(
        self, name: str, version: str, size: int, queue_seconds: Sequence[float], handler_seconds: float
    ) -> None:
        """Record a batch that was answered."""

    def on_load(self, name: str, version: str, worker: str, seconds: float) -> None:
        """Record that a worker has loaded the model."""

    def on_load_failed(self, name: str, version: str, worker: str, failure: str) -> None:
        """Record that a worker could not load the model; ``failure`` is its traceback."""

    def on_death(self, name: str, version: str, worker: str) -> None:
        """Record that the process of a worker has ended, and is being restarted."""

    def on_unregister(self, name: str, version: str) -> None:
        """Remove the records of a version that is no longer registered."""

    def on_metrics(self, name: str, version: str, updates: Sequence[MetricUpdate]) -> None:
        """Record metrics of a handler."""


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """The configuration of a version's pool; times are in seconds, except ``max_batch_delay`` in milliseconds.

    Attributes:
        name: name of the model.
        version: version of the model.
        handler: handler, as the manifest names it.
        folder: folder of the extracted archive.
        own_folder: whether this folder is a copy for one server, so that Python may write bytecode into it.
        memory_limit: limit for the private memory of a worker in bytes; 0: no limit.
        cores: number of cores that its workers share; 0: those of the machine.
        poll: microseconds that a worker busy-polls for the next batch, and the server for a worker's reply.
        preprocess_workers: workers of the stage before the model; 0: there is no such stage, see `staged_pool`.
        postprocess_workers: workers of the stage after the model; 0: there is no such stage.
        stage: stage that the workers run; empty: they do all steps of a request.
        fork: whether workers are forks of one process that has loaded the model; see `torchmar.worker.process.forking`.
        fork_reason: the reason of ``fork``, for the log.
        replica: resources that a node of a cluster reserves for each worker, from the archive; None: not set.
    """

    name: str
    version: str
    handler: str
    folder: str
    own_folder: bool = False
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
    cores: int = 0
    poll: int = 0
    preprocess_workers: int = 0
    postprocess_workers: int = 0
    stage: str = ""
    fork: str = forking.NEVER
    fork_reason: str = ""
    replica: Replica | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages with workers of their own, in their order; empty: workers do all steps of a request."""
        before = (PREPROCESS,) if self.preprocess_workers else ()
        after = (POSTPROCESS,) if self.postprocess_workers else ()
        return (*before, INFERENCE, *after) if before or after else ()


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """The state of a worker; ``memory`` in bytes, ``started`` in seconds since 1970.

    Only in clusters it has ``node``, ``device`` and ``failure``, the traceback of a worker that does not load.
    """

    id: str
    state: State
    pid: int
    started: float
    gpu: int | None
    memory: int
    node: str = ""
    device: str = ""
    failure: str = ""
