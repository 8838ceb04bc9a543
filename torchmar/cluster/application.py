"""A version's application of Ray Serve: its packed content, its deployment, changes and deletion."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace
from pathlib import Path

import torchmar
from torchmar.cluster import capacity
from torchmar.cluster.capacity import Resources
from torchmar.cluster.dispatcher import BATCHES
from torchmar.cluster.node_contents import NodeContent, PackedContent, pack
from torchmar.cluster.replica import NodeVenv, ReplicaSpec
from torchmar.cluster.session import Scale, Session
from torchmar.server.config.settings import Settings
from torchmar.server.workers.pool_options import PoolOptions
from torchmar.server_config import Replica

_ROOM_SECONDS = 10.0  # limit of the time until resources of ended replicas are free
_ROOM_PAUSE_SECONDS = 0.5
_UNLIMITED = 1 << 30  # requests that a replica accepts: its fronts have the limit


class Application:
    """An application, and the packed content of its archive; only one call at a time changes it.

    Args:
        session: connection to the cluster.
        options: configuration of the version.
        packages: the folder with packages of the archive; None: it has none.
        own_venv: whether its workers run in a separate environment.
        settings: the server's configuration.
        folder: folder for the packed content.
        key: key of its replicas in the directory.

    Attributes:
        name: name of the application in Ray Serve.
        key: key of its replicas in the directory.
        needs: resources that a node reserves for each replica.
        deployed: whether the application should exist in Ray Serve.
    """

    def __init__(
        self,
        session: Session,
        options: PoolOptions,
        packages: Path | None,
        own_venv: bool,
        settings: Settings,
        folder: Path,
        key: str,
    ) -> None:
        self.name = session.application_name(options.name, options.version)
        self.key = key
        self.needs = needs(options, settings)
        self.deployed = False
        self._session, self._options, self._settings = session, options, settings
        self._packages, self._folder = packages, folder
        self._venv = None
        if own_venv:
            self._venv = NodeVenv(str(settings.venv_folder or ""), settings.install_py_dep_per_model)
        self._content: PackedContent | None = None
        self._node_content: NodeContent | None = None
        self._packing = asyncio.Lock()

    @property
    def packed_file(self) -> Path | None:
        """The file of the packed content; None: it has not been needed yet."""
        return Path(self._content.path) if self._content else None

    def attach(self, packed: PackedContent, content: NodeContent) -> None:
        """Use this front's copy of a content from another front, packed and extracted."""
        self._content, self._node_content = packed, content

    async def pack(self) -> PackedContent:
        """Return the packed content; it is packed in the first call."""
        async with self._packing:
            if self._content is None:
                target = self._folder / f"{secrets.token_hex(8)}.tar"
                self._content = await asyncio.to_thread(pack, Path(self._options.folder), self._packages, target)
                await self._session.add_content(self._content)
        return self._content

    async def wait_for_room(self, count: int) -> str:
        """Return the reason why there is no room for this number of further replicas; empty: there is room."""
        deadline = time.monotonic() + _ROOM_SECONDS
        while True:
            nodes = await self._session.run(self._session.nodes, free=True)
            full = capacity.problem(self.needs, count, nodes, free=True) if count > 0 else ""
            if not full or time.monotonic() > deadline:
                return full
            await asyncio.sleep(_ROOM_PAUSE_SECONDS)

    async def deploy(self, content: PackedContent, least: int, most: int) -> None:
        """Deploy the application, or change the number of its replicas.

        Args:
            content: packed content of the archive.
            least: smallest number of replicas.
            most: largest number of replicas; if it is above ``least``, Ray Serve chooses the number.

        Raises:
            Exception: Ray raises many kinds, also when its own processes end.
        """
        options, settings = self._options, self._settings
        spec = ReplicaSpec(
            pool=self.key,
            release=torchmar.__version__,
            options=replace(
                options,
                queue_size=_UNLIMITED,
                job_tickets=False,
                cores=max(1, round(self.needs.cpus)),
            ),
            content=content,
            gpu=bool(self.needs.gpus),
            variables=settings.worker_environment({}),
            hidden=settings.blacklist_env_vars.pattern if settings.blacklist_env_vars else "",
            venv=self._venv,
        )
        scale = Scale(
            least=least,
            most=most,
            needs=self.needs,
            batch_size=options.batch_size,
            drain_seconds=BATCHES * options.response_timeout,
        )
        await self._session.run(self._session.deploy, self.name, spec, scale)
        self.deployed = True

    async def delete(self, *, owned: bool) -> None:
        """Remove the packed content, and delete the application.

        Args:
            owned: whether this front has deployed it; otherwise another front deletes it.
        """
        deployed, self.deployed = self.deployed, False
        if deployed and owned:
            await self._session.run(self._session.delete, self.name)
        if self._content:
            content, self._content = self._content, None
            await self._session.remove_content(content)
        if self._node_content:
            content_here, self._node_content = self._node_content, None
            await asyncio.to_thread(content_here.close)


def needs(options: PoolOptions, settings: Settings) -> Resources:
    """Return the resources that a node reserves for a replica: those of its archive, or else of the configuration."""
    replica = options.replica or Replica()
    return Resources(
        cpus=settings.ray_cpus * _processes(options) if replica.cpus is None else replica.cpus,
        gpus=(settings.ray_gpus if options.devices else 0.0) if replica.gpus is None else replica.gpus,
        memory=float(options.memory_limit if replica.memory is None else replica.memory),
        others=replica.resources,
    )


def _processes(options: PoolOptions) -> int:
    """Return the number of a replica's processes."""
    return options.preprocess_workers + 1 + options.postprocess_workers
