"""Models, versions and workers, as described by the management API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Download:
    """A running download of an archive.

    Attributes:
        url: URL of its registration, without the query.
        received: received bytes.
        size: bytes of the whole file; None: unknown.
    """

    url: str
    received: int
    size: int | None


@dataclass(frozen=True)
class RegisteredModel:
    """A model in the list of models.

    Attributes:
        name: name of the model.
        url: archive of its default version: a file name in the model store, or a URL.
    """

    name: str
    url: str


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """The state of one worker.

    Attributes:
        id: number of the worker on the server.
        status: READY if it answers; otherwise UNLOADING, or LOADING on the built-in server.
        pid: its process id; -1 if there is no process.
        start_time: time of its start, in UTC; None if the server does not report it.
        gpu: whether it uses a GPU.
        gpu_usage: nvidia-smi's line for that GPU; ``N/A`` without one.
        memory_usage: its memory in bytes; 0 before the first measurement, and if system metrics are off.
        node: its node in a cluster; empty without a cluster.
        device: its device in a cluster: ``cpu``, or the GPUs of its node: ``gpu 0``.
        failure: traceback of a worker in a cluster that does not load.
    """

    id: str
    status: str
    pid: int
    start_time: datetime | None = None
    gpu: bool = False
    gpu_usage: str = "N/A"
    memory_usage: int = 0
    node: str = ""
    device: str = ""
    failure: str = ""

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> WorkerState:
        """Return the worker from an element of ``workers``."""
        start = document.get("startTime")
        return cls(
            id=str(document["id"]),
            status=str(document["status"]),
            pid=int(document.get("pid", -1)),
            # Python 3.10 cannot parse a Z.
            start_time=datetime.fromisoformat(start.replace("Z", "+00:00")) if start else None,
            gpu=bool(document.get("gpu", False)),
            gpu_usage=str(document.get("gpuUsage", "N/A")),
            memory_usage=int(document.get("memoryUsage", 0)),
            node=str(document.get("node", "")),
            device=str(document.get("device", "")),
            failure=str(document.get("failure", "")),
        )


@dataclass(frozen=True)
class JobQueue:
    """The queue of a version.

    Attributes:
        pending_requests: number of requests that wait for a worker.
        remaining_capacity: number of requests that may still be queued; further ones get 503.
    """

    pending_requests: int = 0
    remaining_capacity: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One registered version of a model.

    Attributes:
        url: archive: a file name in the model store, or a URL.
        max_batch_delay: milliseconds that TorchServe waits for a full batch.
        response_timeout: seconds for a response.
        startup_timeout: seconds for loading.
        max_retry_timeout: seconds during which a worker that dies is restarted.
        client_timeout: milliseconds after which a waiting request is dropped; 0: never.
        device_type: cpu or gpu.
        device_ids: indices of GPUs for its workers; empty: all.
        parallel_type: parallelism of one model over processes: pp, tp, pptp, custom, or empty.
        sequence_max_idle: milliseconds after which an idle sequence ends.
        sequence_timeout: milliseconds that a sequence may last.
        loaded_at_startup: whether the server's configuration contains a model with this name.
        failure: reason why fewer than ``min_workers`` are ready; empty: they are, or the server does not report it.
        stages: workers that only preprocess or postprocess, by stage; empty if ``workers`` do all steps.
        customized: the handler's own description; None if it was not requested.
    """

    name: str
    version: str
    url: str
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay: int
    response_timeout: int
    workers: tuple[WorkerState, ...]
    runtime: str = "python"
    startup_timeout: int = 120
    max_retry_timeout: int = 300
    client_timeout: int = 0
    device_type: str = "cpu"
    device_ids: tuple[int, ...] = ()
    parallel_type: str = ""
    parallel_level: int = 0
    continuous_batching: bool = False
    use_job_ticket: bool = False
    use_venv: bool = False
    stateful: bool = False
    sequence_max_idle: int = 0
    sequence_timeout: int = 0
    max_num_sequence: int = 0
    max_sequence_job_queue_size: int = 0
    loaded_at_startup: bool = False
    job_queue: JobQueue = field(default_factory=JobQueue)
    failure: str = ""
    stages: Mapping[str, tuple[WorkerState, ...]] = field(default_factory=dict)
    customized: Mapping[str, Any] | None = None

    @property
    def ready(self) -> int:
        """The number of workers that are ready."""
        return sum(worker.status == "READY" for worker in self.workers)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> ModelVersion:
        """Return the version from an element of the response to a describe request."""
        queue = document.get("jobQueueStatus", {})
        return cls(
            name=document["modelName"],
            version=document["modelVersion"],
            url=document["modelUrl"],
            min_workers=document["minWorkers"],
            max_workers=document["maxWorkers"],
            batch_size=document["batchSize"],
            max_batch_delay=document["maxBatchDelay"],
            response_timeout=document["responseTimeout"],
            workers=tuple(WorkerState.of(worker) for worker in document.get("workers", [])),
            runtime=document.get("runtime", "python"),
            startup_timeout=document.get("startupTimeout", 120),
            max_retry_timeout=document.get("maxRetryTimeoutInSec", 300),
            client_timeout=document.get("clientTimeoutInMills", 0),
            device_type=document.get("deviceType", "cpu"),
            device_ids=tuple(document.get("deviceIds") or ()),
            parallel_type=document.get("parallelType", ""),
            parallel_level=document.get("parallelLevel", 0),
            continuous_batching=document.get("continuousBatching", False),
            use_job_ticket=document.get("useJobTicket", False),
            use_venv=document.get("useVenv", False),
            stateful=document.get("stateful", False),
            sequence_max_idle=document.get("sequenceMaxIdleMSec", 0),
            sequence_timeout=document.get("sequenceTimeoutMSec", 0),
            max_num_sequence=document.get("maxNumSequence", 0),
            max_sequence_job_queue_size=document.get("maxSequenceJobQueueSize", 0),
            loaded_at_startup=document.get("loadedAtStartup", False),
            job_queue=JobQueue(queue.get("pendingRequests", 0), queue.get("remainingCapacity", 0)),
            failure=str(document.get("failure", "")),
            stages={name: tuple(map(WorkerState.of, workers)) for name, workers in document.get("stages", {}).items()},
            customized=document.get("customizedMetadata"),
        )
