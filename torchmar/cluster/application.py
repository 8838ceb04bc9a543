"""A version's application of Ray Serve: its content is packed, and it is deployed, changed and deleted."""

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

_ROOM_SECONDS = 10.0  # that resources of replicas that have just ended may take to be free
_ROOM_PAUSE_SECONDS = 0.5
_UNLIMITED = 1 << 30  # requests that a replica accepts: its fronts have the limit


class Application:
    """An application, and the packed content of its archive. It is changed by one call at a time.

    Args:
        session: the cluster.
        options: the configuration of the version.
        packages: the folder with packages of the archive; None: it has none.
        own_venv: whether its workers run in an environment of its own.
        settings: the server's configuration.
        folder: for the packed content.
        key: of its replicas in the directory.

    Attributes:
        name: Ray Serve's name of it.
        key: of its replicas in the directory.
        needs: what a node keeps free for each replica.
        deployed: whether it should be one of Ray Serve's.
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
        """The file of the packed content; None: it was not needed yet."""
        return Path(self._content.path) if self._content else None

    def attach(self, packed: PackedContent, content: NodeContent) -> None:
        """Take over this front's copy of a content that another front has packed, packed and extracted."""
        self._content, self._node_content = packed, content

    async def pack(self) -> PackedContent:
        """Return the packed content, which is packed if it is not yet."""
        async with self._packing:
            if self._content is None:
                target = self._folder / f"{secrets.token_hex(8)}.tar"
                self._content = await asyncio.to_thread(pack, Path(self._options.folder), self._packages, target)
                await self._session.add_content(self._content)
        return self._content

    async def wait_for_room(self, count: int) -> str:
        """Return why there is no room for so many more replicas now; empty: there is, perhaps after a few seconds."""
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
            content: its packed content.
            least: replicas.
            most: replicas; more than ``least``: Ray Serve chooses their number.

        Raises:
            Exception: Ray has many, also of its own processes that end.
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
            owned: whether it is this front's own; otherwise another front deletes it.
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
    """Return what a node keeps free for a replica: as its archive says, or else the configuration."""
    own = options.replica or Replica()
    return Resources(
        cpus=settings.ray_cpus * _processes(options) if own.cpus is None else own.cpus,
        gpus=(settings.ray_gpus if options.devices else 0.0) if own.gpus is None else own.gpus,
        memory=float(options.memory_limit if own.memory is None else own.memory),
        others=own.resources,
    )


def _processes(options: PoolOptions) -> int:
    """Return the number of a replica's processes."""
    return options.preprocess_workers + 1 + options.postprocess_workers
