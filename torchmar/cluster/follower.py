"""The models of the leading front, served by another front: versions, defaults, labels and routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torchmar.archive import file_digest
from torchmar.checks.admission import EVERYTHING
from torchmar.cluster.directory import SharedState, SharedVersion
from torchmar.cluster.node_contents import copy, fetch
from torchmar.cluster.session import Session
from torchmar.errors import ArchiveError, TorchmarError
from torchmar.server.api_error import ApiError
from torchmar.server.config import routes
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.models.registration import Registration
from torchmar.server.models.registry import Registry, Version
from torchmar.server.models.startup import StartupFailure
from torchmar.server.telemetry import logs

if TYPE_CHECKING:
    from torchmar.cluster.pools import ClusterPools

#: Stands for all models that the other fronts serve: requests wait until this front serves them too.
SHARED = StartupModel("", key="the cluster")
_RETRY_SECONDS = 30.0  # interval of attempts to serve a version


class _Unserved(NamedTuple):
    """A version of the shared state that this front cannot serve.

    Attributes:
        key: key of its pool.
        entry: entry of the version in the state.
        tried: time of the last attempt, by `time.monotonic`.
    """

    key: str
    entry: Mapping[str, Any]
    tried: float

    @property
    def retry_due(self) -> bool:
        """Whether the pause after the last attempt is over."""
        return time.monotonic() - self.tried >= _RETRY_SECONDS


class Follower:
    """Makes the models of a front equal to those of the leading front.

    Args:
        registry: the models of this front.
        pools: pools of this front.
        session: the cluster.
        folder: folder for packed contents.
    """

    def __init__(self, registry: Registry, pools: ClusterPools, session: Session, folder: Path) -> None:
        self._registry, self._pools, self._session, self._folder = registry, pools, session, folder
        self._unserved: dict[tuple[str, str], _Unserved] = {}  # versions that could not be served, by model and version

    @property
    def retry_due(self) -> bool:
        """Whether a version could not be served, and the pause before the next attempt is over."""
        return any(unserved.retry_due for unserved in self._unserved.values())

    async def apply(self, state: SharedState) -> None:
        """Serve the models of a state and no others; failures are logged, and tried again later."""
        await self._add_versions(state)
        self._forget_failures(state)
        await self._drop_versions(state)
        self._set_routes(state)

    async def _add_versions(self, state: SharedState) -> None:
        """Register the versions of a state, with their numbers of workers."""
        registry, pools = self._registry, self._pools
        for (name, version), shared in state.versions.items():
            if (entry := state.models.get(name, {}).get(version)) is None:
                continue  # it was removed while the state was read
            model = registry.models.get(name)
            registered = model.versions.get(version) if model else None
            if registered and pools.key_of(registered.pool) != shared.key:  # it was registered anew
                await registry.drop(name, version)
                registered = None
            if registered:
                await pools.resize(registered.pool, entry["minWorkers"], entry["maxWorkers"])
            elif (
                (unserved := self._unserved.get((name, version))) is None
                or unserved.key != shared.key
                or unserved.retry_due
            ):
                await self._attach(name, version, entry, shared)

    def _forget_failures(self, state: SharedState) -> None:
        """Drop the records of failed versions that the state no longer has."""
        self._unserved = {key: unserved for key, unserved in self._unserved.items() if key in state.versions}
        startup = self._registry.startup
        for name, failure in list(startup.failures.items()):
            if failure.model.key == SHARED.key and name not in state.models:
                startup.forget(name)

    async def _drop_versions(self, state: SharedState) -> None:
        """Set defaults and labels, and drop versions that the state does not have."""
        for name, model in list(self._registry.models.items()):
            entries = state.models.get(name, {})
            default = next((version for version, entry in entries.items() if entry["defaultVersion"]), "")
            if default in model.versions:
                model.default = default
            model.labels = {label: version for version, entry in entries.items() for label in entry.get("labels", ())}
            for version in model.versions.keys() - entries.keys():
                await self._registry.drop(name, version)

    def _set_routes(self, state: SharedState) -> None:
        current, desired = self._registry.routes, routes.parse(state.routes)
        for path in current.by_path.keys() - desired.keys():
            current.remove(path)
        for path, route in desired.items():
            if current.by_path.get(path) != route:
                current.set(path, route)

    async def _attach(self, name: str, version: str, entry: Mapping[str, Any], shared: SharedVersion) -> None:
        """Register a version whose replicas another front has deployed; after a logged failure it is left out."""
        registry = self._registry
        try:
            try:
                await self._attach_copy(name, version, entry, shared)
            except ArchiveError as error:  # no front has the content any more, for example because its machine is lost
                await self._attach_own(name, version, entry, shared, error)
        except (ApiError, TorchmarError) as error:
            self._unserved[name, version] = _Unserved(shared.key, entry, time.monotonic())
            message = f"{name} {version} is not served by this front: {error.message}"
            logs.SERVER.error("%s", message)
            # Load balancers then send it no requests, which it would answer with 404.
            model = replace(SHARED, url=entry["marName"], name=name)
            registry.startup.failures[name] = StartupFailure(model, message)
            registry.on_change()
        else:
            self._unserved.pop((name, version), None)

    async def _attach_copy(self, name: str, version: str, entry: Mapping[str, Any], shared: SharedVersion) -> None:
        """Register a copy of a content that another front has."""
        packed = await asyncio.to_thread(copy, shared.content, self._session.reader(shared.content), self._folder)
        content = await asyncio.to_thread(fetch, packed, lambda offset: b"")
        try:
            await self._session.add_content(packed)
            registered = await self._register(name, version, entry, content.folder, shared.key)
        except BaseException:
            content.close()
            raise
        self._pools.attach(registered.pool, packed, content)
        registered.url = entry["marName"]
        digest = file_digest.parse(entry.get("digest", ""))
        registered.archive = replace(
            registered.archive, size=shared.size, modified=shared.modified, digest=digest, url=registered.url
        )

    async def _attach_own(
        self, name: str, version: str, entry: Mapping[str, Any], shared: SharedVersion, error: ArchiveError
    ) -> None:
        """Register this front's own archive, if its content is that of the replicas; ``error`` is that of the copy."""
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
            name: name of the model.
            version: version of the model.
            entry: entry of the version in the state.
            url: URL of its archive or content.
            key: key of the pool whose replicas run already; empty: replicas are deployed.
        """
        registration = Registration(
            url,
            model_name=name,
            version=version,
            handler=entry.get("handler", ""),
            runtime=entry.get("runtimeType"),
            synchronous=False,
            ignored_checks=EVERYTHING if key else (),  # the leading front has checked the archive
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

    async def deploy_unserved(self) -> None:
        """Deploy, from own archives, versions of the cluster that this front, which now leads, could not take over."""
        registry = self._registry
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
