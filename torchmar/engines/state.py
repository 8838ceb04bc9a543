"""The state of a running server: processes, models, crash loops."""

from __future__ import annotations

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
_SECONDS = 10.0  # a server that takes longer to describe a model is not healthy


@dataclass(frozen=True)
class VersionState:
    """One version of a model on a server.

    Attributes:
        model: its description by the server.
        default: whether it answers requests without a version.
        memory: bytes of its workers.
        failure: the last failure of its workers, if fewer are ready than ``min_workers``.
    """

    model: ModelVersion
    default: bool
    memory: int
    failure: Failure | None

    @property
    def state(self) -> State:
        """``crash_looping`` with a traceback, ``restarting`` without one; ``starting`` if no failure is known."""
        if self.model.min_workers == 0 and not self.model.workers:
            return "no workers"
        if self.model.ready >= self.model.min_workers:
            return "ready"
        if self.failure is None:
            return "starting"
        return "crash_looping" if self.failure.traceback else "restarting"

    @property
    def healthy(self) -> bool:
        """Whether requests to it are answered, or soon will be."""
        return self.state in ("ready", "starting") or (self.state == "no workers" and not self.default)

    @property
    def error(self) -> TorchmarError | None:
        """The error: its workers die, or the default version has none; None if it is healthy."""
        if self.failure:
            return failed(self)
        if self.healthy:
            return None
        name, version = self.model.name, self.model.version
        return TorchmarError(
            f"{name} {version} is the default version and has no workers: every request to {name} gets 503",
            hint=f"torchmar scale {name} 1, or torchmar set-default {name} VERSION with one that has",
        )


@dataclass(frozen=True)
class ServerState:
    """A server that runs.

    Attributes:
        running: its process and folder.
        server: where it listens.
        metrics: the address of its metrics API.
        memory: bytes of all its processes, what they share counted once where the system tells.
        versions: what is registered, by name and version.
        error: why it does not answer; empty if it does.
        not_loaded: a message for each model that it was to load at its start and could not.
    """

    running: ServerRecord
    server: Endpoint
    metrics: str
    memory: int
    versions: tuple[VersionState, ...]
    error: str
    not_loaded: tuple[str, ...] = ()

    @property
    def uptime(self) -> float:
        """Seconds since it was started."""
        return time.time() - self.running.started

    @property
    def healthy(self) -> bool:
        """Whether it answers, and every model on it, and every one that should be."""
        return not self.error and not self.not_loaded and all(version.healthy for version in self.versions)


def look(running: ServerRecord) -> ServerState:
    """Return the state of a server; that it does not answer is part of it, not an exception."""
    folder = Path(running.folder)
    problem, versions, server = "", [], Endpoint()
    not_loaded: tuple[str, ...] = ()
    metrics = properties.DEFAULTS["metrics_address"]
    try:
        server = Endpoint.from_run_folder(folder)
        metrics = properties.read(folder / "config.properties").url("metrics_address")
        answers(server)
        versions = versions_on(server, folder)
        if report := startup_report.read(folder):
            not_loaded = tuple(failure.message for failure in report.failures if not failure.registered)
    except TorchmarError as error:
        starts = time.time() - running.started < START_SECONDS
        problem = "starting, and does not answer yet" if starts else error.message
    return ServerState(running, server, metrics, memory(running.pid), tuple(versions), problem, not_loaded)


def answers(server: Endpoint) -> None:
    """Ask a server whether it is healthy; one whose models are not well answers all the same.

    Raises:
        TorchmarError: it does not answer, or refuses.
    """
    try:
        InferenceClient(server, timeout=_SECONDS).ping()
    except ServerError as refusal:
        if refusal.status != _UNHEALTHY:
            raise


def versions_on(server: Endpoint, folder: Path) -> list[VersionState]:
    """Return every version of every model on a server, by name and from the oldest version to the newest.

    Args:
        server: where it is.
        folder: its run folder, whose log has the tracebacks.

    Raises:
        TorchmarError: it does not answer, or refuses.
    """
    failures, below = worker_log.failures(folder), _below(folder)
    found = []
    with ManagementClient(server, timeout=_SECONDS) as client:
        for name in client.names():
            default = client.describe(name)[0].version
            for model in sorted(client.describe(name, "all"), key=lambda one: order(one.version)):
                failure = failures.get((name, model.version)) if model.ready < model.min_workers else None
                used = sum(memory(worker.pid) for worker in model.workers if worker.pid in below)
                found.append(VersionState(model, model.version == default, used, failure))
    return found


def failed(version: VersionState) -> ModelFailedError:
    """Return the error for a version whose workers die."""
    assert version.failure
    model, failure = version.model, version.failure
    what = f"{model.name} {model.version}: {model.ready} of {model.min_workers} workers answer; a worker died"
    often = f" {failure.deaths} times in a row" if failure.deaths > 1 else ""
    if failure.traceback:
        return ModelFailedError(f"{what}{often}: {failure.reason}", traceback=failure.traceback)
    return ModelFailedError(
        f"{what}{often} without a word",
        traceback="",
        hint="killed for its memory (dmesg says), or for its silence (torchmar logs says)",
    )


def _below(folder: Path) -> set[int]:
    """Return the numbers of the processes below a folder's server: of others, what it reports is not the memory."""
    running = ServerRecord.find(folder)
    try:
        return {child.pid for child in psutil.Process(running.pid).children(recursive=True)} if running else set()
    except psutil.Error:
        return set()


def memory(pid: int) -> int:
    """Return the bytes that a process and its children use; 0 for one that has ended or may not be looked at."""
    try:
        process = psutil.Process(pid)
        return sum(_memory(one) for one in (process, *process.children(recursive=True)))
    except (psutil.Error, ValueError):
        return 0


def _memory(process: psutil.Process) -> int:
    try:
        # Linux divides what processes share among them: workers share torch's libraries.
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.rss))
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
