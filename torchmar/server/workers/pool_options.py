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
        """Record that the process of a worker has ended, and is started again."""

    def on_unregister(self, name: str, version: str) -> None:
        """Remove the records of a version that is not registered any more."""

    def on_metrics(self, name: str, version: str, updates: Sequence[MetricUpdate]) -> None:
        """Record metrics of a handler."""


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """The configuration of a version's pool; times in seconds, but for ``max_batch_delay``, which is in milliseconds.

    Attributes:
        name: of the model.
        version: of the model.
        handler: as the manifest names it.
        folder: of the extracted archive.
        own_folder: whether this is a copy that only one server uses, so that Python may write bytecode into it.
        memory_limit: bytes of private memory that a worker may have; 0: no limit.
        cores: that its workers share; 0: those of the machine.
        poll: microseconds that a worker busy-polls for the next batch, and the server for a worker's response.
        preprocess_workers: workers of a stage before the model; 0: there is none, see `staged_pool`.
        postprocess_workers: workers of a stage after the model; 0: there is none.
        stage: the stage that the workers run; empty: they do all of a request.
        fork: whether workers are forks of one process that has loaded the model; see `torchmar.worker.process.forking`.
        fork_reason: the reason of ``fork``, for the log.
        replica: what a node of a cluster keeps free for each worker, as the archive says; None: it does not say.
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
        """The stages of a request that have workers of their own, in their order; empty: workers do all of it."""
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
