"""The state of a running server: processes, models, crash loops."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from torchmar import properties
from torchmar.archive.store import order
from torchmar.connection import Endpoint
from torchmar.engines import worker_log
from torchmar.engines.server_records import START_SECONDS, ServerRecord
from torchmar.engines.worker_log import Failure
from torchmar.errors import ModelFailedError, ServerError, TorchmarError
from torchmar.inference import InferenceClient
from torchmar.management import ManagementClient, ModelVersion
from torchmar.server.models import startup_report

State = Literal["ready", "crash_looping", "restarting", "starting", "no workers"]
_UNHEALTHY = 500
_SECONDS = 10.0  # a server that needs longer to describe a model counts as not healthy


@dataclass(frozen=True)
class VersionState:
    """One version of a model on a server.

    Attributes:
        model: the server's description of the version.
        default: whether it answers requests without a version.
        memory: memory of its workers in bytes.
        failure: last failure of its workers, if fewer than ``min_workers`` are ready.
        reason: the server's reason why fewer are ready if the log has no failure, such as lack of room in a cluster.
    """

    model: ModelVersion
    default: bool
    memory: int
    failure: Failure | None
    reason: str = ""

    @property
    def state(self) -> State:
        """``crash_looping`` with a traceback, ``restarting`` without one; ``starting`` if there is no failure."""
        if self.model.min_workers == 0 and not self.model.workers:
            return "no workers"
        if self.model.ready >= self.model.min_workers:
            return "ready"
        if self.reason:
            return "restarting"
        if self.failure is None:
            return "starting"
        return "crash_looping" if self.failure.traceback else "restarting"

    @property
    def healthy(self) -> bool:
        """Whether it answers requests, or its workers are starting."""
        return self.state in ("ready", "starting") or (self.state == "no workers" and not self.default)

    @property
    def error(self) -> TorchmarError | None:
        """The error: workers die or find no room, or the default version has none; None if the version is healthy."""
        if self.reason:
            model = self.model
            counts = f"{model.ready} of {model.min_workers} workers answer"
            return TorchmarError(f"{model.name} {model.version}: {counts}: {self.reason}")
        if self.failure:
            return failed(self)
        if self.healthy:
            return None
        name, version = self.model.name, self.model.version
        return TorchmarError(
            f"{name} {version} is the default version and has no workers: every request to {name} gets 503",
            hint=f"torchmar scale {name} 1, or torchmar set-default {name} VERSION for a version with workers",
        )


@dataclass(frozen=True)
class ServerState:
    """The state of a running server.

    Attributes:
        record: its process and folders.
        endpoint: its addresses.
        metrics: address of its metrics API.
        memory: memory of all its processes in bytes; shared memory counts once if the system reports it.
        versions: the registered versions, by name and version.
        error: reason why it does not answer; empty if it does.
        not_loaded: a message for each model that it could not load at startup.
    """

    record: ServerRecord
    endpoint: Endpoint
    metrics: str
    memory: int
    versions: tuple[VersionState, ...]
    error: str
    not_loaded: tuple[str, ...] = ()

    @property
    def uptime(self) -> float:
        """Seconds since its start."""
        return time.time() - self.record.started

    @property
    def healthy(self) -> bool:
        """Whether it answers, has loaded all models of its configuration, and all registered versions are healthy."""
        return not self.error and not self.not_loaded and all(version.healthy for version in self.versions)


def of(record: ServerRecord) -> ServerState:
    """Return the state of a server; that it does not answer is a state, not an exception."""
    folder = Path(record.folder)
    problem, versions, endpoint = "", [], Endpoint()
    not_loaded: tuple[str, ...] = ()
    metrics = properties.DEFAULTS["metrics_address"]
    try:
        endpoint = Endpoint.from_run_folder(folder)
        metrics = properties.read(folder / "config.properties").url("metrics_address")
        check_answers(endpoint)
        versions = versions_on(endpoint, folder)
        if report := startup_report.read(folder):
            not_loaded = tuple(failure.message for failure in report.failures if not failure.registered)
    except TorchmarError as error:
        starting = time.time() - record.started < START_SECONDS
        problem = "starting, and does not answer yet" if starting else error.message
    return ServerState(record, endpoint, metrics, memory(record.pid), tuple(versions), problem, not_loaded)


def check_answers(endpoint: Endpoint) -> None:
    """Send a ping, which a server with failing models also answers.

    Raises:
        TorchmarError: the server does not answer, or rejects the request.
    """
    try:
        InferenceClient(endpoint, timeout=_SECONDS).ping()
    except ServerError as error:
        if error.status != _UNHEALTHY:
            raise


def versions_on(endpoint: Endpoint, folder: Path) -> list[VersionState]:
    """Return all versions of all models on a server, sorted by name, and by version from the oldest to the newest.

    Args:
        endpoint: the server.
        folder: run folder of the server; its log has the tracebacks.

    Raises:
        TorchmarError: the server does not answer, or rejects a request.
    """
    failures, descendants = worker_log.failures(folder), _descendants(folder)
    states = []
    with ManagementClient(endpoint, timeout=_SECONDS) as client:
        for name in client.names():
            default = client.describe(name)[0].version
            for model in sorted(client.describe(name, "all"), key=lambda model: order(model.version)):
                failure = failures.get((name, model.version)) if model.ready < model.min_workers else None
                workers = (*model.workers, *itertools.chain.from_iterable(model.stages.values()))
                used = sum(memory(worker.pid) for worker in workers if not worker.node and worker.pid in descendants)
                used += sum(worker.memory_usage for worker in workers if worker.node)  # also on other machines
                lines = model.failure.splitlines() if model.ready < model.min_workers and not failure else []
                reason = lines[-1] if lines else ""
                states.append(VersionState(model, model.version == default, used, failure, reason))
    return states


def failed(version: VersionState) -> ModelFailedError:
    """Return the error for a version whose workers die."""
    assert version.failure
    model, failure = version.model, version.failure
    message = f"{model.name} {model.version}: {model.ready} of {model.min_workers} workers answer; a worker died"
    repeated = f" {failure.deaths} times in a row" if failure.deaths > 1 else ""
    if failure.traceback:
        return ModelFailedError(f"{message}{repeated}: {failure.reason}", traceback=failure.traceback)
    return ModelFailedError(
        f"{message}{repeated} without any output",
        traceback="",
        hint="it was killed: by the system, which was short of memory (dmesg), or by the server after a timeout "
        "(torchmar logs)",
    )


def _descendants(folder: Path) -> set[int]:
    """Return the pids of all descendants of a folder's server; other pids in its reports are not its workers."""
    record = ServerRecord.find(folder)
    try:
        return {child.pid for child in psutil.Process(record.pid).children(recursive=True)} if record else set()
    except psutil.Error:
        return set()


def memory(pid: int) -> int:
    """Return the memory of a process and its descendants in bytes; 0 if it has ended or cannot be read."""
    try:
        process = psutil.Process(pid)
        return sum(map(_memory, (process, *process.children(recursive=True))))
    except (psutil.Error, ValueError):
        return 0


def _memory(process: psutil.Process) -> int:
    try:
        # PSS divides shared memory among its processes: workers share the libraries of torch.
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.rss))
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
