"""The fronts of a cluster: one leads, which changes what is served, and the others follow it.

Every front answers requests for models, sends them to the same replicas, and describes them. A request that changes
something is passed on to the leading front through the directory. When that one ends, another leads after a few
seconds, and all replicas stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torchmar.archive import file_digest
from torchmar.checks.admission import EVERYTHING
from torchmar.cluster.directory import ANNOUNCE_SECONDS, SharedState, SharedVersion, Standing
from torchmar.cluster.forwarding import Forwarding
from torchmar.cluster.node_contents import copy, fetch
from torchmar.cluster.session import Session
from torchmar.errors import ArchiveError, EngineError, TorchmarError
from torchmar.server.api_error import ApiError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config import routes
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.http import Request
from torchmar.server.models import snapshots
from torchmar.server.models.registration import Registration
from torchmar.server.models.registry import Registry, Version
from torchmar.server.models.startup import StartupFailure
from torchmar.server.telemetry import logs

if TYPE_CHECKING:
    from torchmar.cluster.pools import ClusterPools

#: Stands for all models that another front serves: requests wait until this front serves them, too.
SHARED = StartupModel("", key="the cluster")
_PUBLISH_PAUSE_SECONDS = 0.01
_RETRY_SECONDS = 30.0  # between attempts to serve a version
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class _Unserved(NamedTuple):
    """A version of the shared state that this front cannot serve.

    Attributes:
        key: of its pool.
        entry: of the version in the state.
        tried: when it was tried, by `time.monotonic`.
    """

    key: str
    entry: Mapping[str, Any]
    tried: float

    @property
    def retry_due(self) -> bool:
        """Whether some time has passed since."""
        return time.monotonic() - self.tried >= _RETRY_SECONDS


class Fronts:
    """The part of a front in a cluster.

    Args:
        session: the cluster.
        pools: of this front.
        folder: for packed contents.
        standing: of this front, when it joined.
        former: models of its last run, in whose place it serves those of other fronts.

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
        self._revision = 0  # that this front serves
        self._expected = max(1, standing.revision)  # to be served at first
        self._registry: Registry | None = None
        self._tasks = BackgroundTasks(log_error)
        self._forwarding = Forwarding(session, self._tasks, self._wait_for, self._published)
        self._changed = asyncio.Event()
        self._applied = asyncio.Event()
        self._leader, self._directory = standing.leader, standing.directory
        self._publishing = False
        self._unserved: dict[tuple[str, str], _Unserved] = {}  # by model and version
        self._following: asyncio.Task[None] | None = None
        self._starting = True

    async def start(self, registry: Registry, manage: Callable[[Request, list[str]], None]) -> None:
        """Take part; returns when this front serves what the others do.

        Args:
            registry: the models of this front.
            manage: answers a request of the management API whose token was checked.

        Raises:
            EngineError: the front that led has ended before it had published anything; this one, which has waited for
                it, has to start again, and to load the models of its own configuration.
        """
        self._registry = registry
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
        """Stop taking part; return whether another front goes on."""
        await self._tasks.close()
        with contextlib.suppress(Exception):  # of Ray; the cluster may have ended
            return bool(await self._session.directory.leave.remote(self._session.front))
        return False

    def changed(self) -> None:
        """Publish what this front serves, if it leads."""
        self._changed.set()

    def refusal(self) -> str:
        """Return why this front changes nothing by itself; empty: it does."""
        if self.leads:
            return ""
        return f"this front follows {self._leader}, which changes models; the REST API passes requests on to it"

    def forward(self, request: Request) -> bool:
        """Pass a request that changes something on to the leading front; return whether that is so."""
        if self.leads or request.method in SAFE_METHODS:
            return False
        self._tasks.start(self._forwarding.forward(request))
        return True

    @property
    def _retry_due(self) -> bool:
        """Whether a version could not be served, and some time has passed since."""
        return any(unserved.retry_due for unserved in self._unserved.values())

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
                forgotten = standing.revision < self._revision  # by a directory that was started again
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
                    # Beside this task: archives may take long to copy.
                    self._following = self._tasks.start(self._catch_up(lead=leader))
            except Exception as error:  # Ray has many; the next attempt may do
                logs.SERVER.error("the directory of the cluster does not answer: %s", error)

    async def _catch_up_first(self) -> None:
        """Wait until this front serves what the others do, or leads: the directory may be started again meanwhile."""
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
        """Serve what is published, and then lead, perhaps."""
        try:
            await self._follow()
        except Exception as error:  # Ray has many
            logs.SERVER.error("what the cluster serves cannot be read: %s", error)
        else:
            if lead and self._revision:
                self._lead()
                self._pools.remove_unused()
                await self._pools.delete_others()  # what could not be taken over
                await self._deploy_unserved()
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
        """Publish what this front serves, whenever it has changed."""
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
                    logs.SERVER.error("what has changed is not published to the other fronts: %s", error)
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
        """Serve what the leading front does."""
        registry, pools = self._registry, self._pools
        assert registry
        revision, state = await self._session.directory.state.remote()
        if revision < self._revision or (revision == self._revision and not self._retry_due):
            return
        for (name, version), shared in state.versions.items():
            if (entry := state.models.get(name, {}).get(version)) is None:
                continue  # it was removed while the state was collected
            known = registry.models.get(name)
            registered = known.versions.get(version) if known else None
            if registered and pools.key_of(registered.pool) != shared.key:  # it was registered anew
                await registry.drop(name, version)
                registered = None
            if registered:
                await pools.resize(registered.pool, entry["minWorkers"], entry["maxWorkers"])
            elif (tried := self._unserved.get((name, version))) is None or tried.key != shared.key or tried.retry_due:
                await self._attach(name, version, entry, shared)
        self._unserved = {key: unserved for key, unserved in self._unserved.items() if key in state.versions}
        for name, failure in list(registry.startup.failures.items()):
            if failure.model.key == SHARED.key and name not in state.models:
                registry.startup.forget(name)
        for name, model in list(registry.models.items()):
            entries = state.models.get(name, {})
            default = next((version for version, entry in entries.items() if entry["defaultVersion"]), "")
            if default in model.versions:
                model.default = default
            model.labels = {label: version for version, entry in entries.items() for label in entry.get("labels", ())}
            for version in model.versions.keys() - entries.keys():
                await registry.drop(name, version)
        wanted = routes.parse(state.routes)
        for path in registry.routes.by_path.keys() - wanted.keys():
            registry.routes.remove(path)
        for path, route in wanted.items():
            if registry.routes.by_path.get(path) != route:
                registry.routes.set(path, route)
        self._revision = revision
        self._applied.set()

    async def _attach(self, name: str, version: str, entry: Mapping[str, Any], shared: SharedVersion) -> None:
        """Register a version whose replicas another front has deployed; what fails is logged and left out."""
        registry = self._registry
        assert registry
        try:
            try:
                await self._attach_copy(name, version, entry, shared)
            except ArchiveError as error:  # no front has the content any more, as when its machine is lost
                await self._attach_own(name, version, entry, shared, error)
        except (ApiError, TorchmarError) as error:
            self._unserved[name, version] = _Unserved(shared.key, entry, time.monotonic())
            message = f"{name} {version} is not served by this front: {error.message}"
            logs.SERVER.error("%s", message)
            # Load balancers send it no requests, which it would answer with 404.
            model = replace(SHARED, url=entry["marName"], name=name)
            registry.startup.failures[name] = StartupFailure(model, message)
            registry.on_change()
        else:
            self._unserved.pop((name, version), None)

    async def _attach_copy(self, name: str, version: str, entry: Mapping[str, Any], shared: SharedVersion) -> None:
        """Register a copy of the content that another front has."""
        own = await asyncio.to_thread(copy, shared.content, self._session.reader(shared.content), self._folder)
        content = await asyncio.to_thread(fetch, own, lambda offset: b"")
        try:
            await self._session.add_content(own)
            registered = await self._register(name, version, entry, content.folder, shared.key)
        except BaseException:
            content.close()
            raise
        self._pools.attach(registered.pool, own, content)
        registered.url = entry["marName"]
        digest = file_digest.parse(entry.get("digest", ""))
        registered.archive = replace(
            registered.archive, size=shared.size, modified=shared.modified, digest=digest, url=registered.url
        )

    async def _attach_own(
        self, name: str, version: str, entry: Mapping[str, Any], shared: SharedVersion, error: ArchiveError
    ) -> None:
        """Register this front's own archive, if its content is that of the replicas; ``error``: of the others'."""
        assert self._registry
        try:
            registered = await self._register(name, version, entry, entry["marName"], shared.key)
        except ApiError as own_error:
            raise ArchiveError(f"{error.message}; {own_error.message}") from None
        try:
            packed = await self._pools.pack(registered.pool)
            if packed.digest != shared.content.digest:
                raise ArchiveError(f"{error.message}; {registered.shown_url} has another content than the replicas")
        except BaseException:
            await self._registry.drop(name, version)
            raise
        logs.SERVER.info("%s %s: the replicas run what %s has", name, version, registered.shown_url)

    async def _register(self, name: str, version: str, entry: Mapping[str, Any], url: str, key: str = "") -> Version:
        """Register a version of the shared state.

        Args:
            name: of the model.
            version: of the model.
            entry: of the version in the state.
            url: of its archive or content.
            key: of the pool whose replicas run; empty: replicas are deployed.
        """
        assert self._registry
        registration = Registration(
            url,
            model_name=name,
            version=version,
            handler=entry.get("handler", ""),
            runtime=entry.get("runtimeType"),
            synchronous=False,
            ignored_checks=EVERYTHING if key else (),  # the leading front has checked it
            state=entry,
            by_operator=True,
            digest=file_digest.parse(entry.get("digest", "")) if url == entry["marName"] else "",
        )
        if key:
            self._pools.attach_next(name, version, key)
        try:
            return await self._registry.register(registration)
        finally:
            self._pools.cancel_attach(name, version)

    async def _deploy_unserved(self) -> None:
        """Deploy from own archives what the cluster served and this front, which leads now, could not take over."""
        registry = self._registry
        assert registry
        for (name, version), unserved in list(self._unserved.items()):
            entry = unserved.entry
            try:
                await self._register(name, version, entry, entry["marName"])
            except (ApiError, TorchmarError) as error:
                logs.SERVER.error("%s %s cannot be deployed again: %s", name, version, error.message)
                continue
            logs.SERVER.warning("%s %s is deployed again, with new replicas", name, version)
            model = registry.models[name]
            if entry["defaultVersion"]:
                model.default = version
            model.labels = {**model.labels, **dict.fromkeys(entry.get("labels", ()), version)}
            registry.on_change()
        self._unserved.clear()

    async def _published(self) -> int:
        """Wait until what has changed is published; return the revision."""
        while self.leads and (self._changed.is_set() or self._publishing):
            await asyncio.sleep(_PUBLISH_PAUSE_SECONDS)
        return self._revision


def log_error(error: BaseException) -> None:
    """Log the error of a task in the background."""
    logs.SERVER.error("a task of this front has failed", exc_info=error)
