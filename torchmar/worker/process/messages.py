"""The messages between the server and worker processes, and their form on the wire; both sides import this module.

Messages of the control channel (control_channel.py) are the dataclasses here; some carry open files. The data plane
(frames.py) is faster: its documents are lists, with the types at the end of this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict


@dataclass(frozen=True)
class Message:
    """The base class of all messages."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Message):
    """The model that a process should load.

    Attributes:
        name: name of the model.
        model_dir: folder of the extracted archive.
        own_folder: whether this folder is a copy for one server, so that Python may write bytecode into it.
        handler: handler, as the manifest names it.
        batch_size: largest number of requests in a batch for the handler.
        gpu: index of the device; None: the CPU.
        envelope: request envelope of the handler; empty: none.
        requirements: folder with packages that were installed for the model; empty: none.
        metrics_config: path of TorchServe's metrics.yaml; empty: TorchServe's own.
        limit_max_image_pixels: passed to TorchServe's loader.
        memory_limit: limit for private memory in bytes; 0: no limit.
        poll_seconds: time to busy-poll for the next batch; 0: none.
        stages: stages with workers of their own; empty: workers do all steps of a request. See `stages`.
        fork: `forking.NEVER`, `forking.KNOWN` or `forking.ALLOWED`.
    """

    name: str
    model_dir: str
    handler: str
    own_folder: bool = False
    batch_size: int = 1
    gpu: int | None = None
    envelope: str = ""
    requirements: str = ""
    metrics_config: str = ""
    limit_max_image_pixels: bool = True
    memory_limit: int = 0
    poll_seconds: float = 0.0
    stages: Sequence[str] = field(default_factory=list)
    fork: str = "never"


# Arguments of start.py. The numbers are file descriptors that the new process inherits.


@dataclass(frozen=True)
class RunForkServer(Message):
    """Become a fork server; its supervisor's lifeline is ``control``."""

    control: int


@dataclass(frozen=True)
class RunModelProcess(Message):
    """Become a model process, which already has a supervisor; ``weights`` is a file for `shared_weights`."""

    control: int
    model: ModelSpec
    weights: int | None


@dataclass(frozen=True)
class RunWorker(Message):
    """Become a single worker that loads a model and serves it; its supervisor's lifeline is ``connection``."""

    connection: int
    model: ModelSpec


@dataclass(frozen=True)
class RunCommand(Message):
    """Run a command; all its processes end when the other end of ``lifeline`` is closed."""

    lifeline: int
    command: list[str]


# To a fork server or a model process. The sender chooses ids, which the replies contain.


@dataclass(frozen=True)
class Spawn(Message):
    """Fork a model process. Files: its control socket, its output and, if weights are shared, their file."""

    id: int
    model: ModelSpec


@dataclass(frozen=True)
class ImportModules(Message):
    """Import modules for later model processes."""

    names: Sequence[str]


@dataclass(frozen=True)
class Serve(Message):
    """Turn this process into a worker. Files: its socket. ``stage`` is empty if it does all steps of a request."""

    stage: str


@dataclass(frozen=True)
class Fork(Message):
    """Fork a worker. Files: its socket and its output. ``stage`` is empty if it does all steps of a request."""

    id: int
    stage: str


@dataclass(frozen=True)
class Kill(Message):
    """Kill the forked process with this id."""

    id: int


# From a fork server or a model process.


@dataclass(frozen=True)
class Ready(Message):
    """The fork server accepts messages; ``missing`` are modules that it could not import."""

    pid: int
    missing: Sequence[str]


@dataclass(frozen=True)
class Forked(Message):
    """A process was forked. Files: its pidfd, if the system has pidfds. ``pid`` is 0 if the fork failed."""

    id: int
    pid: int


@dataclass(frozen=True)
class Exited(Message):
    """The process with this id has exited; a negative status is the number of a signal."""

    id: int
    status: int


@dataclass(frozen=True)
class Loaded(Message):
    """The model is loaded.

    Attributes:
        objection: reason why the model process must not be forked; empty: it may be.
        shared_bytes: bytes of its weights in memory that it shares with other processes.
        description: the handler's description of its tensors.
    """

    objection: str
    shared_bytes: int
    description: ModelDescription


@dataclass(frozen=True)
class LoadFailed(Message):
    """The model did not load."""

    traceback: str


# Between a replica of a cluster and the process that loads the model for all replicas on its node; see
# `torchmar.cluster.node_loader`.


@dataclass(frozen=True)
class StartWorker(Message):
    """Start a worker, which is killed with its replica. Files: its socket and its output. The reply is `Forked`."""

    id: int
    stage: str


@dataclass(frozen=True)
class StartFailed(Message):
    """No worker was started for this id.

    Attributes:
        id: id of the request.
        cause: ``model``: it did not load; ``fork server``: it has ended; ``worker``: its process did not start.
        text: error message, or traceback of the handler.
    """

    id: int
    cause: str
    text: str


@dataclass(frozen=True)
class Described(Message):
    """The handler's description of its tensors, sent before the first `Forked`."""

    description: ModelDescription


@dataclass(frozen=True)
class LogEntry(Message):
    """A sentence for the server's log about the worker with this id; 0: about no worker."""

    id: int
    level: int
    text: str


# From a supervisor to its parent, and from a single worker to the process that started it.


@dataclass(frozen=True)
class Supervised(Message):
    """The supervisor has forked its process. Files: its pidfd, if the system has pidfds."""

    pid: int


@dataclass(frozen=True)
class WorkerReady(Message):
    """The single worker has loaded its model and accepts batches; the document of a LOADED frame."""

    pid: int


def to_wire(message: Message) -> dict[str, Any]:
    """Return a message as JSON values, with its type as ``kind``."""
    values = {attribute.name: getattr(message, attribute.name) for attribute in fields(message)}
    plain = {name: to_wire(value) if isinstance(value, Message) else value for name, value in values.items()}
    return {"kind": type(message).__name__, **plain}


def from_wire(document: Mapping[str, Any]) -> Any:
    """Return the message from the values of `to_wire`."""
    values = {
        name: from_wire(value) if isinstance(value, dict) and "kind" in value else value
        for name, value in document.items()
        if name != "kind"
    }
    return _KINDS[document["kind"]](**values)


_KINDS = {kind.__name__: kind for kind in Message.__subclasses__()}


class TensorInfo(TypedDict):
    """An input or output, in the keys of the Open Inference Protocol; -1 in a shape: any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelDescription(TypedDict, total=False):
    """The tensor signature of a handler.

    Attributes:
        inputs: inputs; empty if the handler has no signature.
        outputs: outputs; empty if the handler has no signature.
        binary: whether the handler accepts binary tensors.
        max_instances: largest number of instances in a request; 0: unknown.
    """

    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    binary: bool
    max_instances: int


# Documents of frames. A document contains the size of each body; the bodies follow it.

#: For each request of a BATCH frame: id, headers, and name, content type and size of each part.
Batch = Sequence[tuple[str, Mapping[str, str], Sequence[tuple[str, str, int]]]]
#: One response: status, content type, headers, size of the body, and an error if the handler failed.
ResponseHead = tuple[int, str, dict[str, str], int, str]
#: Of a PART frame: index in the batch, then as in `ResponseHead`.
PartHead = tuple[int, int, str, dict[str, str], int, str]
#: One update of a metric: name, unit, value, type, and dimensions with their values.
MetricUpdate = tuple[str, str, float, str, list[tuple[str, str]]]


class StepTimes(TypedDict):
    """The times of a batch in its worker, by `time.monotonic`, which all processes on a machine share.

    Attributes:
        started: time when the worker began with the batch.
        ended: time when its responses were complete.
        runs: runs of the model: start, end, and the index of a request that ran alone; None: the whole batch.
    """

    started: float
    ended: float
    runs: list[tuple[float, float, int | None]]


class Responses(TypedDict, total=False):
    """The document of a RESPONSES frame; ``seconds`` is the handler's time, ``steps`` are the times for traces."""

    seconds: float
    responses: list[ResponseHead]
    metrics: list[MetricUpdate]
    steps: StepTimes
