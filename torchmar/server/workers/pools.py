"""The factory of the pools of versions: workers of this machine, or in their place those of another engine."""

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
    """The workers of a version, and the requests that wait for them; see `torchmar.server.workers.pool.Pool`."""

    options: PoolOptions
    min_workers: int

    @property
    def max_workers(self) -> int:
        """How many workers there may be."""

    @property
    def ready(self) -> int:
        """The number of ready workers."""

    @property
    def pending(self) -> int:
        """The number of requests that wait for a worker."""

    @property
    def busy(self) -> bool:
        """Whether any request waits or is run."""

    @property
    def failure(self) -> str:
        """The traceback of the worker that did not load or exited last; empty since one has loaded."""

    @property
    def signature(self) -> tuple[object, ...]:
        """A value that changes with the number of workers and the state of each; cheap."""

    @property
    def description(self) -> ModelDescription:
        """The tensors of the handler; empty until it has loaded once."""

    def workers(self) -> list[WorkerInfo]:
        """Return the state of each worker."""

    def stage_workers(self) -> dict[str, list[WorkerInfo]]:
        """Return the state of each worker of a stage beside the model, by stage."""

    def submit(self, job: Job) -> None:
        """Run a request. Raises ApiError (503) if it cannot be run."""

    def admit(self, kind: str, deadline: float | None) -> None:
        """Check whether a request of a kind that arrives now can be run. Raises ApiError (503) if it cannot."""

    def enqueue(self, job: Job) -> None:
        """Run a request that was admitted."""

    async def scale(self, min_workers: int, max_workers: int) -> bool:
        """Set the number of workers; return whether all have loaded."""

    async def described(self) -> None:
        """Wait until a handler has loaded and described its tensors, or no worker will load."""

    async def drain(self, seconds: float) -> bool:
        """Wait until no request waits or is run, at most ``seconds``; return whether that is so."""

    async def close(self) -> None:
        """End every worker; requests that wait or are run get a 503."""


class Pools(Protocol):
    """Makes the pools of a server's versions. All methods are called in the server's loop."""

    def add_metrics(self, metrics: Metrics) -> None:
        """Add metrics of their own to those of the server."""

    async def start(self) -> None:
        """Start what all pools need. Raises TorchmarError if it cannot be started."""

    async def join(self, registry: Any, manage: Callable[[Request, list[str]], None]) -> None:
        """Begin to serve what other servers with the same workers do; called once, before models are loaded.

        Args:
            registry: the models of this server, a `torchmar.server.models.registry.Registry`.
            manage: answers a request of the management API whose token was checked.
        """

    def forward(self, request: Request) -> bool:
        """Pass a request of the management API on to another server; return whether that one answers it."""

    def refusal(self) -> str:
        """Return why this server changes no models by itself; empty: it does."""

    def problem(self) -> str:
        """Return why workers are neither started nor replaced now, and nothing can be changed; empty: they are."""

    async def failed(self) -> TorchmarError:
        """Return why the server has to end, when that is so."""

    def changed(self) -> None:
        """Take note that the registered models have changed."""

    async def leave(self) -> None:
        """Prepare for the end of this server: `release` then leaves to other servers what they need."""

    def create(
        self, options: PoolOptions, observer: PoolObserver, packages: Path | None, venv: Venv | None
    ) -> VersionPool:
        """Return the pool of a version; `release` it when its version is not registered any more.

        Args:
            options: its configuration.
            observer: callbacks for its events.
            packages: the folder with packages that its archive requires; None: it has none of its own.
            venv: the environment that its workers run in; None: the server's own.

        Raises:
            ApiError: 400, its workers cannot run there.
        """

    async def release(self, pool: VersionPool) -> None:
        """Close a pool."""

    async def close(self) -> None:
        """End everything that `start` has started."""


class LocalPools:
    """Pools whose workers are processes of this machine.

    Args:
        fork_server: the parent of workers without packages of their own; it is ended with the pools.
    """

    def __init__(self, fork_server: ForkServer) -> None:
        self._fork_server = fork_server
        self._fork_servers = ForkServers(fork_server)
        self._used: dict[VersionPool, ForkServer] = {}

    def add_metrics(self, metrics: Metrics) -> None:
        """Implement `Pools`: there are none."""

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
        """Implement `Pools`: there is none."""
        return ""

    async def failed(self) -> TorchmarError:
        """Implement `Pools`: this does not return."""
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
