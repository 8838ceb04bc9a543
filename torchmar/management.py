"""The management API: register, describe, scale and remove models on a running server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from torchmar.connection import Connection, Server


@dataclass(frozen=True)
class WorkerState:
    """One worker as the server describes it; ``status`` is READY when it answers."""

    id: str
    status: str
    pid: int


@dataclass(frozen=True)
class ModelVersion:
    """One registered version of a model; delays in milliseconds, timeouts in seconds."""

    name: str
    version: str
    url: str
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay: int
    response_timeout: int
    workers: tuple[WorkerState, ...]

    @property
    def ready(self) -> int:
        """The number of workers that answer."""
        return sum(worker.status == "READY" for worker in self.workers)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> ModelVersion:
        """Return what one element of a describe answer says."""
        workers = (
            WorkerState(str(worker["id"]), str(worker["status"]), int(worker.get("pid", -1)))
            for worker in said.get("workers", [])
        )
        return cls(
            said["modelName"],
            said["modelVersion"],
            said["modelUrl"],
            said["minWorkers"],
            said["maxWorkers"],
            said["batchSize"],
            said["maxBatchDelay"],
            said["responseTimeout"],
            tuple(workers),
        )


class ManagementClient:
    """A client of the management API.

    Every method raises Unreachable when there is no server, and Refused (Unauthorized,
    NotFound, Conflict) with the server's own words when it says no. Nothing is retried.
    """

    def __init__(self, server: Server | None = None, timeout: float = 60.0) -> None:
        self._connection = Connection(server or Server.started_in(), "management", timeout)

    def register(
        self,
        url: str,
        *,
        model_name: str | None = None,
        initial_workers: int | None = None,
        batch_size: int | None = None,
        max_batch_delay: int | None = None,
        response_timeout: int | None = None,
        startup_timeout: int | None = None,
        synchronous: bool = True,
        timeout: float = 300.0,
    ) -> str:
        """Register an archive: a file name in the server's model store, or a URL that it allows.

        What the archive's own ``model-config.yaml`` says about workers and batching goes before
        what is said here. With ``synchronous`` the answer comes when the workers are up, or with
        Refused when one of them failed; the model is not registered then.

        Returns:
            What the server said.
        """
        query = {
            "url": url,
            "model_name": model_name,
            "initial_workers": initial_workers,
            "batch_size": batch_size,
            "max_batch_delay": max_batch_delay,
            "response_timeout": response_timeout,
            "startup_timeout": startup_timeout,
            "synchronous": str(synchronous).lower(),
        }
        return self._said("POST", "/models", query, timeout)

    def describe(self, name: str, version: str | None = None) -> list[ModelVersion]:
        """Return a version, the default one, or with ``all`` every version of a model."""
        said = self._connection.ask("GET", _path(name, version)).json()
        return [ModelVersion.of(one) for one in said]

    def names(self) -> Iterator[str]:
        """Yield the names of all registered models."""
        token: str | None = None
        while True:
            said = self._connection.ask("GET", "/models", query={"limit": 100, "next_page_token": token}).json()
            yield from (model["modelName"] for model in said["models"])
            token = said.get("nextPageToken")
            if token is None:
                return

    def scale(
        self,
        name: str,
        version: str | None = None,
        *,
        min_worker: int,
        max_worker: int | None = None,
        synchronous: bool = True,
        timeout: float = 300.0,
    ) -> str:
        """Set the number of workers of a version, or of the default one; the maximum follows the minimum."""
        query = {
            "min_worker": min_worker,
            "max_worker": max(min_worker, max_worker or 0),
            "synchronous": str(synchronous).lower(),
        }
        return self._said("PUT", _path(name, version), query, timeout)

    def set_default(self, name: str, version: str) -> str:
        """Make ``version`` the one that answers requests without a version."""
        return self._said("PUT", f"{_path(name, version)}/set-default")

    def unregister(self, name: str, version: str | None = None) -> str:
        """Remove a version, or a model's only one."""
        return self._said("DELETE", _path(name, version))

    def _said(self, method: str, path: str, query: Mapping[str, Any] | None = None, timeout: float = 60.0) -> str:
        return str(self._connection.ask(method, path, query=query, timeout=timeout).json()["status"])


def _path(name: str, version: str | None = None) -> str:
    return f"/models/{quote(name, safe='')}" + (f"/{quote(version, safe='')}" if version else "")
