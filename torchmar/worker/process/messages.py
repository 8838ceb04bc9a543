"""The messages between the server and worker processes, which both import, and their form on the wire.

Messages of the control channel (control_channel.py) are the dataclasses here, some with open files beside them. The
data plane (frames.py) is faster: its documents are lists, and the types at the end describe them.
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
    """The model that a process loads.

    Attributes:
        name: of the model.
        model_dir: the folder of the extracted archive.
        own_folder: whether this is a copy that only one server uses, so that Python may write bytecode into it.
        handler: as the manifest names it.
        batch_size: requests that the handler gets at once, at most.
        gpu: index of the device; None: the CPU.
        envelope: the request envelope of the handler; empty: none.
        requirements: a folder with packages that were installed for the model; empty: none.
        metrics_config: path of TorchServe's metrics.yaml; empty: TorchServe's own.
        limit_max_image_pixels: passed to TorchServe's loader.
        memory_limit: bytes of private memory; 0: no limit.
        poll_seconds: time to busy-poll for the next batch; 0: none.
        stages: the stages of a request that have workers of their own; empty: workers do all of it. See `stages`.
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


# The argument of start.py. The numbers are file descriptors that the new process inherits.


@dataclass(frozen=True)
class RunForkServer(Message):
    """Be a fork server; its supervisor's lifeline is ``control``."""

    control: int


@dataclass(frozen=True)
class RunModelProcess(Message):
    """Be a model process, which has a supervisor already; ``weights`` is a file for `shared_weights`."""

    control: int
    model: ModelSpec
    weights: int | None


@dataclass(frozen=True)
class RunWorker(Message):
    """Be a single worker that loads a model and serves it; its supervisor's lifeline is ``connection``."""

    connection: int
    model: ModelSpec


@dataclass(frozen=True)
class RunCommand(Message):
    """Run a command; all processes that it starts end when the other end of ``lifeline`` is closed."""

    lifeline: int
    command: list[str]


# To a fork server or a model process. The sender chooses ids, which the replies carry.


@dataclass(frozen=True)
class Spawn(Message):
    """Fork a model process. Files: its control socket, its output and, if weights are shared, their file."""

    id: int
    model: ModelSpec


@dataclass(frozen=True)
class ImportModules(Message):
    """Import modules that later model processes need."""

    names: Sequence[str]


@dataclass(frozen=True)
class Serve(Message):
    """Be a worker in this process. Files: its socket. ``stage`` is empty if it does all of a request."""

    stage: str


@dataclass(frozen=True)
class Fork(Message):
    """Fork a worker. Files: its socket and its output. ``stage`` is empty if it does all of a request."""

    id: int
    stage: str


@dataclass(frozen=True)
class Kill(Message):
    """Kill the process that was forked for an id."""

    id: int


# From a fork server or a model process.


@dataclass(frozen=True)
class Ready(Message):
    """The fork server accepts messages; ``missing`` are the modules that it could not import."""

    pid: int
    missing: Sequence[str]


@dataclass(frozen=True)
class Forked(Message):
    """A process was forked for an id. Files: its pidfd, where the system has pidfds. ``pid`` is 0 if fork failed."""

    id: int
    pid: int


@dataclass(frozen=True)
class Exited(Message):
    """The process of an id has exited; a negative status is the number of a signal."""

    id: int
    status: int


@dataclass(frozen=True)
class Loaded(Message):
    """The model is loaded.

    Attributes:
        objection: why the model process must not be forked; empty: it may be.
        shared_bytes: bytes of its weights that are in memory shared with other processes.
        description: of the handler's tensors.
    """

    objection: str
    shared_bytes: int
    description: ModelDescription


@dataclass(frozen=True)
class LoadFailed(Message):
    """The model did not load."""

    traceback: str


# Between a replica of a cluster and the process that loads the model for all replicas of its node; see
# `torchmar.cluster.node_loader`.


@dataclass(frozen=True)
class StartWorker(Message):
    """Start a worker, which is killed with its replica. Files: its socket and its output. The reply is `Forked`."""

    id: int
    stage: str


@dataclass(frozen=True)
class StartFailed(Message):
    """There is no worker for an id.

    Attributes:
        id: of the request.
        cause: ``model``: it did not load; ``fork server``: that has ended; ``worker``: its process did not start.
        text: the error, or the traceback of the handler.
    """

    id: int
    cause: str
    text: str


@dataclass(frozen=True)
class Described(Message):
    """The tensors of the handler, before the first `Forked`."""

    description: ModelDescription


@dataclass(frozen=True)
class LogEntry(Message):
    """A sentence for the server's log, about the worker of an id; 0: about none."""

    id: int
    level: int
    text: str


# From a supervisor to the process that forked it, and from a single worker to the process that started it.


@dataclass(frozen=True)
class Supervised(Message):
    """The supervisor has forked its process. Files: its pidfd, where the system has pidfds."""

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
    """Return the message that `to_wire` has written."""
    values = {
        name: from_wire(value) if isinstance(value, dict) and "kind" in value else value
        for name, value in document.items()
        if name != "kind"
    }
    return _KINDS[document["kind"]](**values)


_KINDS = {kind.__name__: kind for kind in Message.__subclasses__()}


class TensorInfo(TypedDict):
    """One input or output, in the keys of the Open Inference Protocol; -1 in a shape: any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelDescription(TypedDict, total=False):
    """The tensor signature of a handler.

    Attributes:
        inputs: empty if the handler has no signature.
        outputs: empty if the handler has no signature.
        binary: whether the handler takes tensors as bytes.
        max_instances: how many instances a request may have; 0: unknown.
    """

    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    binary: bool
    max_instances: int


# Documents of frames. Each body's size stands in the document, the bodies follow it.

#: Of a BATCH frame, by request: id, headers, and name, content type and size of each part.
Batch = Sequence[tuple[str, Mapping[str, str], Sequence[tuple[str, str, int]]]]
#: One response: status, content type, headers, size of the body, and the error if the handler failed.
ResponseHead = tuple[int, str, dict[str, str], int, str]
#: Of a PART frame: index in the batch, and the rest as in `ResponseHead`.
PartHead = tuple[int, int, str, dict[str, str], int, str]
#: One update of a metric: name, unit, value, type, and dimensions with their values.
MetricUpdate = tuple[str, str, float, str, list[tuple[str, str]]]


class StepTimes(TypedDict):
    """The times of a batch in its worker, by `time.monotonic`, which all processes of a machine share.

    Attributes:
        started: when the worker began with it.
        ended: when its responses were complete.
        runs: of the model: begin, end, and the index of the request that was run alone; None: all of the batch.
    """

    started: float
    ended: float
    runs: list[tuple[float, float, int | None]]


class Responses(TypedDict, total=False):
    """The document of a RESPONSES frame; ``seconds`` is the time that the handler took, ``steps`` that of traces."""

    seconds: float
    responses: list[ResponseHead]
    metrics: list[MetricUpdate]
    steps: StepTimes
