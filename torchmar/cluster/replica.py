"""A replica of a version: a pool of the built-in server with one worker, in an actor of Ray Serve."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import psutil

import torchmar
from torchmar.archive import Archive
from torchmar.cluster import node_loader
from torchmar.cluster.autoscaling import DEMAND
from torchmar.cluster.content_reader import reader
from torchmar.cluster.directory import ANNOUNCE_SECONDS, ReplicaState
from torchmar.cluster.listener import Listener
from torchmar.cluster.log_lines import LogLines
from torchmar.cluster.node_contents import NodeContent, PackedContent, fetch
from torchmar.cluster.node_loader import LoaderSpec, NodeLoader
from torchmar.errors import EngineError, TorchmarError
from torchmar.server.models import venvs
from torchmar.server.telemetry import logs
from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.pool import Pool
from torchmar.server.workers.pool_options import PoolOptions, WorkerInfo
from torchmar.server.workers.staged_pool import StagedPool, create_pool
from torchmar.worker.process.messages import MetricUpdate
from torchmar.worker.venvs import folder as venv_folders
from torchmar.worker.venvs.folder import Venv


@dataclass(frozen=True)
class NodeVenv:
    """The settings by which a node gets an environment of its own for a replica.

    Attributes:
        place: folder of environments; empty: that of the user.
        may_build: whether the node may build the environment; otherwise it must have it.
    """

    place: str
    may_build: bool


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec:
    """The specification of a replica.

    Attributes:
        pool: key of the front's pool in the directory.
        release: release of the front's torchmar; the node must have the same.
        options: options of the replica's pool, with the folders of the front.
        content: packed content of the archive.
        gpu: whether the replica has a GPU.
        variables: environment variables of the worker, in addition to those of the node.
        hidden: pattern for names of variables that the worker does not get; empty: it gets all.
        venv: settings of the environment that the archive requires; None: it requires none.
    """

    pool: str
    release: str
    options: PoolOptions
    content: PackedContent
    gpu: bool
    variables: Mapping[str, str]
    hidden: str
    venv: NodeVenv | None = None


class Replica:
    """The class of the deployment; Ray Serve calls its methods in one event loop.

    Args:
        spec: specification of the replica.
        directory: the directory, an actor.

    Raises:
        RuntimeError: the model does not load; Ray Serve then starts another replica, with growing pauses.
    """

    async def __init__(self, spec: ReplicaSpec, directory: Any) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        import ray
        from ray import serve

        self._spec, self._directory = spec, directory
        self._lines = LogLines.collect()
        self._observer = _Events()
        self._pool: Pool | StagedPool | None = None
        self._fork_server: ForkServer | None = None
        self._loader: NodeLoader | None = None
        self._content: NodeContent | None = None
        self._venv: Venv | None = None
        self._announcing: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self._host, self._node_id = ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id()
        self._state = ReplicaState(
            id=serve.get_replica_context().replica_id.unique_id,
            node=f"{self._host} ({self._node_id[:8]})",
            state="LOADING",
            device=_device(ray.get_runtime_context()) if spec.gpu else "cpu",
            started=time.time(),
        )
        self._announce()
        try:
            await self._load()
        except BaseException as error:
            reason = str(error) if isinstance(error, TorchmarError) else f"{type(error).__name__}: {error}"
            failure = (self._pool and self._pool.failure) or f"on node {self._state.node}: {reason}"
            self._state = replace(self._state, state="UNLOADING", failure=failure)
            if not (self._pool and self._pool.failure):  # no worker has logged the failure
                for line in failure.splitlines():
                    logs.log_worker_output(self._state.id, spec.options.name, spec.options.version, line)
            # Wait for the announcement: the actor ends right after it.
            await self._directory.announce.remote(self._spec.pool, self._state, self._lines.take())
            await self._end()
            raise
        self._announcing = asyncio.get_running_loop().create_task(self._announce_often())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the value that `torchmar.cluster.autoscaling` uses; Ray Serve calls this periodically."""
        return {DEMAND: float(self._listener.demand) if self._listener else 0.0}

    async def check_health(self) -> None:
        """Raise if the worker will not be restarted; Ray Serve then replaces the replica."""
        if self._pool and self._pool.given_up:
            raise RuntimeError(self._pool.failure)

    async def __del__(self) -> None:
        """Answer the remaining requests, and end the worker; Ray Serve calls this."""
        if self._listener:
            await self._listener.drain()
        try:
            await self._directory.withdraw.remote(self._spec.pool, self._state.id)
        finally:  # it ends with its front
            await self._end()

    async def _load(self) -> None:
        spec = self._spec
        if spec.release != torchmar.__version__:
            raise EngineError(f"it has torchmar {torchmar.__version__}, and the server {spec.release}")
        read = reader(self._directory, spec.content.digest)
        self._content = await asyncio.to_thread(fetch, spec.content, read)
        pattern = re.compile(spec.hidden) if spec.hidden else None
        environment = {name: value for name, value in os.environ.items() if not (pattern and pattern.fullmatch(name))}
        # Ray sets this variable for its own processes; the pool limits the threads of its worker.
        environment.pop("OMP_NUM_THREADS", None)
        environment.update(spec.variables)
        if spec.venv:
            self._venv = await self._own_venv(Path(self._content.folder), spec.venv, environment)
        options = replace(
            spec.options,
            folder=self._content.folder,
            own_folder=False,  # other servers of the node may use the folder
            requirements=self._content.packages,
            devices=(0,) if spec.gpu else (),  # Ray shows a replica only its own GPUs
        )
        self._fork_server = ForkServer(environment, self._content.packages, self._venv)
        if not spec.gpu and node_loader.available():
            self._loader = NodeLoader(self._loader_spec(options, environment))
        self._pool = create_pool(self._fork_server, options, self._observer, self._loader)
        if not await self._pool.scale(1, 1):
            raise RuntimeError(self._pool.failure)
        self._listener = Listener(self._pool.submit, self._observer.take, self._node_id)
        endpoint = await self._listener.open(self._host, os.environ)
        self._observer.on_ready = self._listener.set_ready
        self._listener.set_ready(True)
        self._state = replace(self._state, endpoint=endpoint)
        self._update()

    def _loader_spec(self, options: PoolOptions, environment: Mapping[str, str]) -> LoaderSpec:
        import ray
        from ray import serve

        return LoaderSpec(
            key=self._spec.pool,
            node_id=self._node_id,
            head=ray.get_runtime_context().gcs_address,
            group=serve.get_replica_context().app_name.rpartition(":")[0],
            options=options,
            environment=environment,
            packages=options.requirements,
            venv=str(self._venv.folder) if self._venv else "",
        )

    async def _own_venv(self, folder: Path, node_venv: NodeVenv, environment: Mapping[str, str]) -> Venv:
        """Return the environment that the archive in a folder requires; a node builds it once."""
        with Archive(folder) as archive:
            runtime = archive.runtime
        assert runtime
        return await venvs.prepare(
            runtime,
            content=folder,
            place=Path(node_venv.place) if node_venv.place else venv_folders.root(),
            may_build=node_venv.may_build,
            model_name=self._spec.options.name,
            environment=environment,
        )

    def _update(self) -> None:
        assert self._pool
        (worker,) = self._pool.workers()
        self._state = replace(
            self._state,
            state=worker.state,
            pid=worker.pid,
            memory=worker.memory,
            load_seconds=self._observer.load_seconds,
            requests=self._observer.requests,
            cpu_seconds=self._cpu_seconds(),
            failure=self._pool.failure,
            description=self._pool.description,
            stages=self._stages(),
        )

    def _stages(self) -> dict[str, list[WorkerInfo]]:
        """Return the workers of the other stages than the model, numbered within this replica."""
        assert self._pool
        id, node = self._state.id, self._state.node
        return {
            stage: [replace(worker, id=f"{id}-{worker.id}", node=node, device="cpu") for worker in workers]
            for stage, workers in self._pool.stage_workers().items()
        }

    def _cpu_seconds(self) -> float:
        """Return the CPU time of this process and of its worker; a worker that has ended does not count."""
        assert self._pool
        spent = time.process_time()
        for worker in (*self._pool.workers(), *chain.from_iterable(self._pool.stage_workers().values())):
            with contextlib.suppress(psutil.Error, ValueError):
                times = psutil.Process(worker.pid).cpu_times()
                spent += times.user + times.system
        return spent

    async def _announce_often(self) -> None:
        while True:
            self._update()
            self._announce()
            await asyncio.sleep(ANNOUNCE_SECONDS)

    def _announce(self) -> None:
        self._directory.announce.remote(self._spec.pool, self._state, self._lines.take())

    async def _end(self) -> None:
        if self._announcing:
            self._announcing.cancel()
        if self._listener:
            self._listener.close()
        if self._pool:
            await self._pool.close()
        if self._loader:
            self._loader.release()
        if self._fork_server:
            await self._fork_server.end()
        if self._venv:
            self._venv.close()
        if self._content:
            with contextlib.suppress(OSError):
                self._content.close()


def _device(context: Any) -> str:
    """Return the GPUs of a replica in the form of `ReplicaState`; several replicas may share them."""
    return f"gpu {', '.join(map(str, context.get_accelerator_ids().get('GPU', [])))}".strip()


class _Events:
    """Collects the events of a pool for the fronts; see `PoolObserver`.

    Attributes:
        load_seconds: seconds that the model took to load.
        on_ready: called with True when the worker is ready, and with False when its process has ended.
    """

    def __init__(self) -> None:
        self.load_seconds = 0.0
        self.on_ready: Callable[[bool], None] = lambda ready: None
        self.requests = 0
        self._batches: list[tuple[int, list[float], float]] = []
        self._updates: list[MetricUpdate] = []

    def on_batch(
        self, name: str, version: str, size: int, queue_seconds: Sequence[float], handler_seconds: float
    ) -> None:
        self.requests += size
        self._batches.append((size, list(queue_seconds), handler_seconds))

    def on_load(self, name: str, version: str, worker: str, seconds: float) -> None:
        self.load_seconds = seconds
        self.on_ready(True)

    def on_load_failed(self, name: str, version: str, worker: str, failure: str) -> None:
        pass  # the replica announces it

    def on_death(self, name: str, version: str, worker: str) -> None:
        self.on_ready(False)

    def on_unregister(self, name: str, version: str) -> None:
        pass

    def on_metrics(self, name: str, version: str, updates: Sequence[MetricUpdate]) -> None:
        self._updates += updates

    def take(self) -> dict[str, Any]:
        """Return the events since the previous call, in the form of `torchmar.cluster.channel.Replies`."""
        events = {"batches": self._batches, "metrics": self._updates}
        self._batches, self._updates = [], []
        return events
