"""The fronts of a cluster: one front leads and changes models, and the others follow it.

Every front answers requests for models, sends them to the same replicas, and describes them. A request that changes
models is forwarded to the leading front through the directory. When the leading front ends, another one leads after a
few seconds, and all replicas stay.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torchmar.cluster.directory import ANNOUNCE_SECONDS, SharedState, Standing
from torchmar.cluster.follower import Follower
from torchmar.cluster.forwarding import Forwarding
from torchmar.cluster.session import Session
from torchmar.errors import EngineError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config import routes
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.http import Request
from torchmar.server.models import snapshots
from torchmar.server.models.registry import Registry
from torchmar.server.telemetry import logs

if TYPE_CHECKING:
    from torchmar.cluster.pools import ClusterPools

_PUBLISH_PAUSE_SECONDS = 0.01
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Fronts:
    """The membership of a front in its cluster.

    Args:
        session: the cluster.
        pools: pools of this front.
        folder: folder for packed contents.
        standing: the directory's response when this front joined.
        former: models of its last run, which it does not load while it follows other fronts.

    Attributes:
        leads: whether this front changes what is served.
    """

    def __init__(
        self,
        session: Session,
        pools: ClusterPools,
        folder: Path,
        standing: Standing,
        former: Sequence[StartupModel] = (),
    ) -> None:
        self._former = former
        self._session, self._pools, self._folder = session, pools, folder
        self.leads = standing.leader == session.front and standing.revision == 0
        self._revision = 0  # revision of the shared state that this front serves
        self._expected = max(1, standing.revision)  # first revision that this front has to serve
        self._registry: Registry | None = None
        self._tasks = BackgroundTasks(log_error)
        self._forwarding = Forwarding(session, self._tasks, self._wait_for, self._published)
        self._changed = asyncio.Event()
        self._applied = asyncio.Event()
        self._leader, self._directory = standing.leader, standing.directory
        self._publishing = False
        self._follower: Follower | None = None
        self._following: asyncio.Task[None] | None = None
        self._starting = True

    async def start(self, registry: Registry, manage: Callable[[Request, list[str]], None]) -> None:
        """Join the cluster; returns when this front serves the same models as the others.

        Args:
            registry: the models of this front.
            manage: responds to a request of the management API whose token has been checked.

        Raises:
            EngineError: the leading front ended before it had published its models; this front, which waited for them,
                has to start again, and to load the models of its own configuration.
        """
        self._registry, self._follower = registry, Follower(registry, self._pools, self._session, self._folder)
        self._tasks.start(self._take_part())
        if not self.leads:
            await self._catch_up_first()
            for model in registry.startup.pending:
                registry.startup.registered(model)
            for model in self._former:
                if model.name not in registry.models or model.version not in registry.models[model.name].versions:
                    registry.startup.warn(
                        f"{model.name} {model.version} of the last run is not served: this server follows "
                        f"{self._leader}, which does not serve it; register it again"
                    )
        self._starting = False
        self._tasks.start(self._publish())
        self._tasks.start(self._forwarding.run_calls(manage))

    async def close(self) -> bool:
        """Leave the cluster; return whether another front remains."""
        await self._tasks.close()
        with contextlib.suppress(Exception):  # Ray may have ended
            return bool(await self._session.directory.leave.remote(self._session.front))
        return False

    def changed(self) -> None:
        """Publish what this front serves, if it leads."""
        self._changed.set()

    def refusal(self) -> str:
        """Return the reason why this front does not change models itself; empty: it does."""
        if self.leads:
            return ""
        return f"this front follows {self._leader}, which changes models; the REST API passes requests on to it"

    def forward(self, request: Request) -> bool:
        """Forward a request that changes models to the leading front; return whether it was forwarded."""
        if self.leads or request.method in SAFE_METHODS:
            return False
        self._tasks.start(self._forwarding.forward(request))
        return True

    @property
    def _retry_due(self) -> bool:
        return self._follower is not None and self._follower.retry_due

    async def _wait_for(self, revision: int) -> None:
        while self._revision < revision:
            self._applied.clear()
            await self._applied.wait()

    async def _take_part(self) -> None:
        """Announce this front, and follow or lead."""
        directory = self._session.directory
        while True:
            await asyncio.sleep(ANNOUNCE_SECONDS)
            try:
                standing: Standing = await directory.join.remote(self._session.front, self._revision, leads=self.leads)
                leader = standing.leader == self._session.front
                if not leader and self.leads:
                    logs.SERVER.warning("another front leads now: %s", standing.leader)
                    self._pools.own_all(False)
                self.leads, self._leader = leader and self.leads, standing.leader or self._leader
                if standing.directory != self._directory:
                    self._directory = standing.directory
                    await self._session.add_contents()
                forgotten = standing.revision < self._revision  # the directory was started again
                if leader and forgotten:
                    if self.leads:
                        self._changed.set()
                    else:
                        self._lead()
                elif (
                    not self.leads
                    and (leader or standing.revision > self._revision or self._retry_due)
                    and (not self._following or self._following.done())
                ):
                    # In a task of its own: to copy archives can take long.
                    self._following = self._tasks.start(self._catch_up(lead=leader))
            except Exception as error:  # Ray raises exceptions of many classes; the next attempt may succeed
                logs.SERVER.error("the directory of the cluster does not answer: %s", error)

    async def _catch_up_first(self) -> None:
        """Wait until this front serves the same models as the others, or leads: the directory may restart meanwhile."""
        while not self.leads and self._revision < self._expected:
            if self._session.starts_again:
                message = f"{self._leader} has ended before it had published what it serves"
                raise EngineError(message, hint="start this server again")
            if self._following is None or self._following.done():
                self._following = self._tasks.start(self._catch_up())
            await asyncio.wait({self._following})
            if self._revision < self._expected:
                await asyncio.sleep(ANNOUNCE_SECONDS)

    async def _catch_up(self, *, lead: bool = False) -> None:
        """Serve the published models; then, if ``lead`` is set, lead."""
        try:
            await self._follow()
        except Exception as error:  # Ray has many
            logs.SERVER.error("the models of the cluster cannot be read: %s", error)
        else:
            if lead and self._revision:
                self._lead()
                self._pools.remove_unused()
                await self._pools.delete_others()  # applications that could not be taken over
                assert self._follower
                await self._follower.deploy_unserved()
            elif lead and self._starting:
                logs.SERVER.warning("%s has ended before it had published what it serves; starting again", self._leader)
                self._session.starts_again = True
            elif lead:
                self._lead()

    def _lead(self) -> None:
        logs.SERVER.info("this front leads now")
        self.leads, self._leader = True, self._session.front
        self._pools.own_all(True)
        self._changed.set()

    async def _publish(self) -> None:
        """Publish the models of this front after each change."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.leads:
                self._publishing = True
                try:
                    state = await self._state()
                    if revision := await self._session.directory.publish.remote(
                        self._session.front, state, self._revision
                    ):
                        self._revision = revision
                except Exception as error:
                    logs.SERVER.error("changes are not published to the other fronts: %s", error)
                    await asyncio.sleep(ANNOUNCE_SECONDS)
                    self._changed.set()
                finally:
                    self._publishing = False

    async def _state(self) -> SharedState:
        registry = self._registry
        assert registry
        versions = [version for model in registry.models.values() for version in model.versions.values()]
        shared = {(version.name, version.version): await self._pools.shared(version) for version in versions}
        return SharedState(
            models=snapshots.document(registry, "")["models"],
            versions=shared,
            routes=routes.show(registry.routes.by_path),
        )

    async def _follow(self) -> None:
        """Serve the models of the leading front."""
        assert self._follower
        revision, state = await self._session.directory.state.remote()
        if revision > self._revision or (revision == self._revision and self._retry_due):
            await self._follower.apply(state)
            self._revision = revision
            self._applied.set()

    async def _published(self) -> int:
        """Wait until all changes are published; return the revision."""
        while self.leads and (self._changed.is_set() or self._publishing):
            await asyncio.sleep(_PUBLISH_PAUSE_SECONDS)
        return self._revision


def log_error(error: BaseException) -> None:
    """Log the error of a background task."""
    logs.SERVER.error("a task of this front has failed", exc_info=error)
