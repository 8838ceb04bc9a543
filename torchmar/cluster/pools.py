"""The pools of a front, one for each version, with their state in the directory and the data for other fronts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torchmar.archive import runtime
from torchmar.cluster import log_lines, node_metrics
from torchmar.cluster.capacity import Resources
from torchmar.cluster.directory import ANNOUNCE_SECONDS, SharedVersion, Standing
from torchmar.cluster.fronts import SAFE_METHODS, Fronts, log_error
from torchmar.cluster.node_contents import NodeContent, PackedContent
from torchmar.cluster.pool import ClusterPool
from torchmar.cluster.session import Session
from torchmar.errors import TorchmarError
from torchmar.server.api_error import ApiError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config.settings import Settings
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.http import Request
from torchmar.server.models.registry import Registry, Version
from torchmar.server.telemetry import logs
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.workers.pool_options import PoolObserver, PoolOptions
from torchmar.server.workers.pools import VersionPool
from torchmar.worker.venvs.folder import Venv

_CHANGING_SECONDS = 0.1  # interval of reading the directory while replicas start or end
_NODES_SECONDS = 5.0  # interval of reading the resources of nodes


class ClusterPools:
    """Pools whose workers are replicas on the nodes of a cluster.

    Args:
        session: the cluster.
        settings: the server's configuration.
        folder: folder for packed contents of archives.
        standing: the directory's response when this front joined.
        former: models of its last run, which it does not load while it follows other fronts.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        folder: Path,
        standing: Standing,
        former: Sequence[StartupModel] = (),
    ) -> None:
        self._session, self._settings, self._folder = session, settings, folder
        self._pools: dict[str, ClusterPool] = {}
        self._fronts = Fronts(session, self, folder, standing, former)
        self._standing = standing
        self._next: dict[tuple[str, str], str] = {}  # keys for `attach_next`, by model and version
        self._tasks = BackgroundTasks(log_error)
        self._head_changed: Callable[[], None] = lambda: None
        self._nodes: tuple[Mapping[str, Resources], Mapping[str, Resources]] = ({}, {})
        self._nodes_read = 0.0
        self._others = False  # whether other fronts continue when this one ends

    def add_metrics(self, metrics: Metrics) -> None:
        """Implement `torchmar.server.workers.pools.Pools`: add the metrics of nodes."""
        node_metrics.add(
            metrics,
            lambda: {(pool.options.name, pool.options.version): pool.replicas for pool in self._pools.values()},
            lambda: self._nodes,
        )

    async def start(self) -> None:
        """Implement `torchmar.server.workers.pools.Pools`: start to read the directory."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._standing.revision:
            self.remove_unused()
        self._tasks.start(self._watch())
        self._tasks.start(self._session.head.watch(lambda: self._head_changed()))

    def create(
        self, options: PoolOptions, observer: PoolObserver, packages: Path | None, venv: Venv | None
    ) -> VersionPool:
        """Implement `torchmar.server.workers.pools.Pools`."""
        if venv and not (Path(options.folder) / runtime.FILE).is_file():
            message = (
                f"{options.name} {options.version} has useVenv in its model-config.yaml, which replicas do "
                "not have; give its recipe a runtime in place of it, or serve it with --engine builtin."
            )
            raise ApiError(400, "InvalidModelException", message)
        key = self._next.pop((options.name, options.version), "")
        pool = ClusterPool(
            self._session, options, observer, packages, venv is not None, self._settings, self._folder, key
        )
        self._pools[pool.key] = pool
        return pool

    # Fronts; see `torchmar.cluster.fronts`.

    async def join(self, registry: Registry, manage: Callable[[Request, list[str]], None]) -> None:
        """Implement `torchmar.server.workers.pools.Pools`: serve the models of the other fronts."""
        self._head_changed = lambda: registry.on_change()
        await self._fronts.start(registry, manage)

    def forward(self, request: Request) -> bool:
        """Implement `torchmar.server.workers.pools.Pools`: forward changes to the leading front.

        Raises:
            ApiError: 503, models cannot be changed now.
        """
        if request.method not in SAFE_METHODS and (problem := self.problem()):
            raise ApiError(503, "ServiceUnavailableException", f"{problem[0].upper()}{problem[1:]}.")
        return self._fronts.forward(request)

    def refusal(self) -> str:
        """Implement `torchmar.server.workers.pools.Pools`."""
        return self._fronts.refusal()

    def problem(self) -> str:
        """Implement `torchmar.server.workers.pools.Pools`: the head does not answer."""
        return self._session.head.problem

    async def failed(self) -> TorchmarError:
        """Implement `torchmar.server.workers.pools.Pools`: the head has been silent for too long."""
        head = self._session.head
        await head.lost.wait()
        return head.error

    def changed(self) -> None:
        """Implement `torchmar.server.workers.pools.Pools`: publish the changes."""
        self._fronts.changed()

    async def leave(self) -> None:
        """Implement `torchmar.server.workers.pools.Pools`: keep the replicas while there are other fronts."""
        # Without the head, all of Ray ends.
        self._others = self._session.head.lost.is_set() or await self._fronts.close()
        self.own_all(not self._others)

    def own_all(self, owned: bool) -> None:
        """Set whether this front deploys, scales and deletes all replicas."""
        for pool in self._pools.values():
            pool.owned = owned

    async def shared(self, version: Version) -> SharedVersion:
        """Return the data of a version that other fronts need; pack its content if it is not packed yet."""
        pool, archive = version.pool, version.archive
        assert isinstance(pool, ClusterPool)
        return SharedVersion(key=pool.key, content=await pool.pack(), size=archive.size, modified=archive.modified)

    def remove_unused(self) -> None:
        """Remove packed contents that an earlier server left in the folder."""
        used_files = {pool.packed_file for pool in self._pools.values()}
        for file in self._folder.glob("*.tar"):
            if file not in used_files:
                file.unlink()

    async def delete_others(self) -> None:
        """Delete applications that belong to no pool."""
        name_of = self._session.application_name
        names = {name_of(pool.options.name, pool.options.version) for pool in self._pools.values()}
        await self._session.run(self._session.delete_others, names)

    def attach_next(self, name: str, version: str, key: str) -> None:
        """Attach the next pool of a version to the replicas that another front has deployed."""
        self._next[name, version] = key

    def cancel_attach(self, name: str, version: str) -> None:
        """Undo `attach_next`, if the pool was not created yet."""
        self._next.pop((name, version), None)

    @staticmethod
    def attach(pool: VersionPool, packed: PackedContent, content: NodeContent) -> None:
        """Give a pool this front's copy of a content from another front, packed and extracted."""
        assert isinstance(pool, ClusterPool)
        pool.attach(packed, content)

    @staticmethod
    async def pack(pool: VersionPool) -> PackedContent:
        """Return the packed content of a pool."""
        assert isinstance(pool, ClusterPool)
        return await pool.pack()

    @staticmethod
    def key_of(pool: VersionPool) -> str:
        """Return the key of a pool."""
        assert isinstance(pool, ClusterPool)
        return pool.key

    @staticmethod
    async def resize(pool: VersionPool, min_workers: int, max_workers: int) -> None:
        """Set the number of replicas that another front has chosen."""
        await pool.scale(min_workers, max_workers)

    async def release(self, pool: VersionPool) -> None:
        """Implement `torchmar.server.workers.pools.Pools`."""
        assert isinstance(pool, ClusterPool)
        del self._pools[pool.key]
        await pool.close()

    async def close(self) -> None:
        """Implement `torchmar.server.workers.pools.Pools`: leave the cluster."""
        self._tasks.cancel()
        if not self._others:
            await asyncio.to_thread(self._session.end)
        await asyncio.to_thread(self._session.close)

    async def _watch(self) -> None:
        """Pass the entries of the directory to the pools and the logs; often while replicas start or end."""
        count = 0
        while True:
            try:
                replicas = await self._session.replicas()
                count, lines = await self._session.directory.lines.remote(count)
            except Exception as error:
                logs.SERVER.error("the directory of replicas does not answer: %s", error)
                await asyncio.sleep(ANNOUNCE_SECONDS)
                continue
            for key, replica, line in lines:  # before failures, whose messages refer to the log
                if pool := self._pools.get(key):
                    log_lines.write(line, replica.id, replica.node, pool.options.name, pool.options.version)
            for key, pool in list(self._pools.items()):
                pool.update(replicas.get(key, []))
            await self._read_nodes()
            changing = any(pool.ready < pool.min_workers for pool in self._pools.values())
            await asyncio.sleep(_CHANGING_SECONDS if changing else ANNOUNCE_SECONDS)

    async def _read_nodes(self) -> None:
        """Read the resources of nodes, for metrics and for messages about missing replicas."""
        if time.monotonic() - self._nodes_read < _NODES_SECONDS or self.problem():
            return
        self._nodes_read = time.monotonic()
        nodes = self._session.nodes
        try:
            self._nodes = await asyncio.to_thread(nodes), await asyncio.to_thread(nodes, free=True)
            incomplete = [pool for pool in self._pools.values() if pool.missing and pool.deployed]
            applications = await asyncio.to_thread(self._session.applications) if incomplete else {}
        except Exception as error:  # Ray raises exceptions of many classes
            logs.SERVER.error("the nodes of the cluster cannot be listed: %s", error)
            self._nodes = {}, {}
            return
        for pool in list(self._pools.values()):
            pool.check(self._nodes[1], applications)
        for pool in incomplete:
            pool.restore(applications)
