"""The documents of the console's API: the server, its models, events and log entries."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import psutil

import torchmar
from torchmar.server.config.settings import Settings
from torchmar.server.models import archive_urls
from torchmar.server.models.health import health
from torchmar.server.models.registry import Model, Registry, Version
from torchmar.server.telemetry.events import Event
from torchmar.server.telemetry.recent_logs import LogEntry
from torchmar.server.telemetry.system_metrics import cores
from torchmar.server.tokens import Right
from torchmar.server.workers.pool_options import WorkerInfo

State = Literal["ready", "starting", "restarting", "crash_looping", "no workers"]
_TRACEBACK = "Traceback"


class Models:
    """The models of this server as a `torchmar.server.api.console.source.Source`.

    Args:
        registry: the models.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @property
    def health(self) -> str:
        """As ``GET /ping``."""
        return health(self._registry)

    @property
    def loading(self) -> bool:
        """Whether the models of the configuration are still being loaded."""
        return self._registry.startup.loading

    def names(self) -> list[str]:
        """Return the names of all models."""
        return list(self._registry.models)

    def signatures(self) -> dict[str, object]:
        """Return the `signature` of each model."""
        return {name: signature(described) for name, described in self._registry.models.items()}

    def model(self, name: str) -> dict[str, Any]:
        """Return the document of a model."""
        return model(self._registry.models[name])


def server(registry: Registry, settings: Settings, right: Right) -> dict[str, Any]:
    """Return the document of the server for a client with given rights."""
    startup = registry.startup
    process = psutil.Process()
    memory = psutil.virtual_memory()
    return {
        "torchmar": torchmar.__version__,
        "engine": "torchmar",
        "not_reported": [],
        "pid": os.getpid(),
        "started": round(process.create_time(), 3),
        "now": round(time.time(), 3),
        "health": health(registry),
        "loading": startup.loading,
        "not_loaded": [
            {"model": name, "url": archive_urls.without_secrets(failure.model.url), "message": failure.message}
            for name, failure in startup.failures.items()
        ],
        "warnings": list(startup.warnings),
        "addresses": {"inference": str(settings.inference), "management": str(settings.management)},
        "grpc": {
            "inference": f"{settings.grpc_inference.host}:{settings.grpc_inference.port}",
            "management": f"{settings.grpc_management.host}:{settings.grpc_management.port}",
        },
        "model_store": str(settings.model_store),
        "tokens": settings.tokens,
        "right": right,
        "may_register": settings.model_api and right == "management",
        "may_upload": settings.model_api and settings.console_uploads and right == "management",
        "largest_upload": settings.max_request_size,
        "machine": {
            "cores": cores(),
            "load": round(psutil.getloadavg()[0], 2),
            "memory_used": memory.total - memory.available,
            "memory_total": memory.total,
        },
    }


def model(described: Model) -> dict[str, Any]:
    """Return the document of a model with all of its versions."""
    return {
        "name": described.name,
        "default": described.default,
        "labels": dict(described.labels),
        "versions": [_version(version) for version in described.versions.values()],
    }


def state(version: Version) -> State:
    """Return the state of a version, with the names of ``torchmar status``."""
    pool = version.pool
    if not pool.min_workers and not pool.workers():
        return "no workers"
    if pool.ready >= pool.min_workers:
        return "ready"
    if not pool.failure:
        return "starting"
    return "crash_looping" if _TRACEBACK in pool.failure else "restarting"


def _version(version: Version) -> dict[str, Any]:
    pool, archive, options = version.pool, version.archive, version.serving.pool
    stages = pool.stage_workers().items()
    return {
        "version": version.version,
        "url": version.shown_url,
        "digest": archive.key,
        "size": archive.size,
        "modified": archive.modified,
        "handler": options.handler,
        "description": archive.manifest.model.description or "",
        "state": state(version),
        "ready": pool.ready,
        "min_workers": pool.min_workers,
        "max_workers": pool.max_workers,
        "pending": pool.pending,
        "device": version.serving.device_type,
        "batch_size": options.batch_size,
        "max_batch_delay_ms": options.max_batch_delay,
        "response_timeout_s": options.response_timeout,
        "queue_size": options.queue_size,
        "failure": pool.failure,
        "workers": [
            *(_worker(worker, "") for worker in pool.workers()),
            *(_worker(worker, stage) for stage, workers in stages for worker in workers),
        ],
    }


def _worker(worker: WorkerInfo, stage: str) -> dict[str, Any]:
    return {
        "id": worker.id,
        "state": worker.state,
        "pid": worker.pid,
        "gpu": worker.gpu,
        "memory": worker.memory,
        "started": round(worker.started, 3),
        "stage": stage,
    }


def signature(described: Model) -> tuple[Any, ...]:
    """Return a value that changes with the document of `model`, except its memory and its waiting requests; cheap."""
    return (
        described.default,
        tuple(described.labels.items()),
        tuple(
            (name, id(version), version.pool.signature, version.pool.failure)
            for name, version in described.versions.items()
        ),
    )


def event(recorded: Event) -> dict[str, Any]:
    """Return the document of an event."""
    return {**recorded._asdict(), "time": round(recorded.time, 3)}


def log_entries(entries: Iterable[LogEntry]) -> list[dict[str, Any]]:
    """Return the documents of log entries."""
    return list(_log_entries(entries))


def _log_entries(entries: Iterable[LogEntry]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        yield {
            "number": entry.number,
            "time": round(entry.time, 3),
            "level": entry.level,
            "model": entry.model,
            "version": entry.version,
            "worker": entry.worker,
            "request_id": entry.request_id,
            "text": entry.text,
        }


def events(recorded: Iterable[Event]) -> Sequence[dict[str, Any]]:
    """Return the documents of events."""
    return [event(entry) for entry in recorded]
