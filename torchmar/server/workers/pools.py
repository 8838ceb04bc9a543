"""The factory of the pools of versions: with workers on this machine, or of another engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torchmar.errors import TorchmarError
from torchmar.server.http import Request
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.fork_servers import ForkServers
from torchmar.server.workers.jobs import Job
from torchmar.server.workers.pool_options import PoolObserver, PoolOptions, WorkerInfo
from torchmar.server.workers.staged_pool import create_pool
from torchmar.worker.process.messages import ModelDescription
from torchmar.worker.venvs.folder import Venv


class VersionPool(Protocol):
    """The workers of a version, and its waiting requests; see `torchmar.server.workers.pool.Pool`."""

    options: PoolOptions
    min_workers: int

    @property
    def max_workers(self) -> int:
        """The largest number of workers."""

    @property
    def ready(self) -> int:
        """The number of ready workers."""

    @property
    def pending(self) -> int:
        """The number of requests that wait for a worker."""

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""

    @property
    def failure(self) -> str:
        """The traceback of the last worker that did not load or exited; empty after a worker has loaded."""

    @property
    def signature(self) -> tuple[object, ...]:
        """A value that changes with the number of workers and the state of each; cheap."""

    @property
    def description(self) -> ModelDescription:
        """The handler's description of its tensors; empty until it has loaded once."""

    def workers(self) -> list[WorkerInfo]:
        """Return the state of each worker."""

    def stage_workers(self) -> dict[str, list[WorkerInfo]]:
        """Return the state of each worker of other stages than the model, by stage."""

    def submit(self, job: Job) -> None:
        """Run a request. Raises ApiError (503) if it cannot be run."""

    def admit(self, kind: str, deadline: float | None) -> None:
        """Check whether a request of a kind that arrives now can be run. Raises ApiError (503) if it cannot."""

    def enqueue(self, job: Job) -> None:
        """Run a request that `admit` has accepted."""

    async def scale(self, min_workers: int, max_workers: int) -> bool:
        """Set the number of workers; return whether all have loaded."""

    async def described(self) -> None:
        """Wait until a handler has loaded and described its tensors, or all workers have failed."""

    async def drain(self, seconds: float) -> bool:
        """Wait up to ``seconds`` until no request waits or runs; return whether this was reached."""

    async def close(self) -> None:
        """End all workers; waiting and running requests get a 503."""


class Pools(Protocol):
    """Makes the pools of a server's versions. All methods are called in the server's loop."""

    def add_metrics(self, metrics: Metrics) -> None:
        """Add the pools' own metrics to those of the server."""

    async def start(self) -> None:
        """Start the processes that all pools share. Raises TorchmarError if they cannot be started."""

    async def join(self, registry: Any, manage: Callable[[Request, list[str]], None]) -> None:
        """Start to serve the models of other servers with the same workers; called once, before models are loaded.

        Args:
            registry: the models of this server, a `torchmar.server.models.registry.Registry`.
            manage: answers a request of the management API whose token has been checked.
        """

    def forward(self, request: Request) -> bool:
        """Forward a request of the management API to another server; return whether that server answers it."""

    def refusal(self) -> str:
        """Return the reason why this server does not change models itself; empty: it does."""

    def problem(self) -> str:
        """Return the reason why workers and models cannot be changed now; empty: they can."""

    async def failed(self) -> TorchmarError:
        """Return the reason why the server has to end, as soon as there is one."""

    def changed(self) -> None:
        """Record that the registered models have changed."""

    async def leave(self) -> None:
        """Prepare for the end of this server: `release` then keeps what other servers need."""

    def create(
        self, options: PoolOptions, observer: PoolObserver, packages: Path | None, venv: Venv | None
    ) -> VersionPool:
        """Return the pool of a version; `release` it when its version is no longer registered.

        Args:
            options: configuration of the pool.
            observer: callbacks for its events.
            packages: folder with packages that its archive requires; None: it has no packages of its own.
            venv: environment of its workers; None: the server's own.

        Raises:
            ApiError: 400, its workers cannot run in these pools.
        """

    async def release(self, pool: VersionPool) -> None:
        """Close a pool."""

    async def close(self) -> None:
        """End the processes of `start`."""


class LocalPools:
    """Pools whose workers are processes of this machine.

    Args:
        fork_server: parent of workers without packages of their own; it is ended with the pools.
    """

    def __init__(self, fork_server: ForkServer) -> None:
        self._fork_server = fork_server
        self._fork_servers = ForkServers(fork_server)
        self._used: dict[VersionPool, ForkServer] = {}

    def add_metrics(self, metrics: Metrics) -> None:
        """Implement `Pools`: there are no further metrics."""

    async def start(self) -> None:
        """Implement `Pools`: import torch in the fork server."""
        await self._fork_server.start()

    async def join(self, registry: Any, manage: Callable[[Request, list[str]], None]) -> None:
        """Implement `Pools`: there are no other servers."""

    def forward(self, request: Request) -> bool:
        """Implement `Pools`: there are no other servers."""
        return False

    def refusal(self) -> str:
        """Implement `Pools`: this server changes models."""
        return ""

    def problem(self) -> str:
        """Implement `Pools`: there is no problem."""
        return ""

    async def failed(self) -> TorchmarError:
        """Implement `Pools`: never return."""
        await asyncio.Event().wait()
        raise AssertionError

    def changed(self) -> None:
        """Implement `Pools`: there are no other servers."""

    async def leave(self) -> None:
        """Implement `Pools`: there are no other servers."""

    def create(
        self, options: PoolOptions, observer: PoolObserver, packages: Path | None, venv: Venv | None
    ) -> VersionPool:
        """Implement `Pools`."""
        fork_server = self._fork_servers.acquire(packages, venv)
        pool = create_pool(fork_server, options, observer)
        self._used[pool] = fork_server
        return pool

    async def release(self, pool: VersionPool) -> None:
        """Implement `Pools`."""
        await pool.close()
        await self._fork_servers.release(self._used.pop(pool))

    async def close(self) -> None:
        """Implement `Pools`."""
        self._fork_server.close()
