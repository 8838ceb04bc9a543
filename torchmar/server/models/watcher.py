"""The watcher of a model store or of base paths: it serves new versions when their archives appear, and drains old
ones.

A version is registered with its workers, which load it and answer its samples; then it becomes the default; then older
versions complete their requests and are unregistered. An archive is complete if it does not change between two polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from torchmar.archive.store import order
from torchmar.server.api_error import ApiError
from torchmar.server.config import available_versions
from torchmar.server.config.available_versions import AvailableVersion
from torchmar.server.config.base_paths import BasePath, VersionPolicy
from torchmar.server.models.left_out import LeftOut
from torchmar.server.models.registration import Registration
from torchmar.server.models.registry import Registry
from torchmar.server.telemetry import logs


class Watcher:
    """Registers the versions that are available.

    Args:
        registry: the models.
        base_paths: folders, each of one model.
        store: model store; None: no model store is watched.
        store_policy: the versions of each model of the store to serve.
        poll_seconds: interval of the polls.
    """

    def __init__(
        self,
        registry: Registry,
        base_paths: Sequence[BasePath],
        store: Path | None = None,
        store_policy: VersionPolicy | None = None,
        poll_seconds: float = 1,
    ) -> None:
        self._registry, self._base_paths, self._store = registry, tuple(base_paths), store
        self._store_policy = store_policy or VersionPolicy()
        self._poll_seconds = poll_seconds
        self._known: dict[str, dict[Path, AvailableVersion]] = {}  # archives by model; those of the store under ""
        self._stamps: dict[Path, tuple[int, ...]] = {}
        self._failed: dict[Path, tuple[int, ...]] = {}
        self._left_out = LeftOut()
        self._served: dict[tuple[str, str], AvailableVersion] = {}

    async def run(self) -> None:
        """Poll until the task is cancelled; errors are logged, and do not end the task."""
        while True:
            try:
                await self.poll()
            except Exception:
                logs.SERVER.exception("the model folders could not be watched")
            await asyncio.sleep(self._poll_seconds)

    async def poll(self) -> None:
        """Read the folders once, and register and unregister versions."""
        available, left_out = await asyncio.to_thread(self._look)
        for message in left_out:
            logs.SERVER.warning("%s", message)
        stable = {
            name: [version for version in versions if self._stamps.get(version.path) == version.stamp]
            for name, (versions, _) in available.items()
        }
        self._stamps = {version.path: version.stamp for versions, _ in available.values() for version in versions}
        policies = {name: policy for name, (_, policy) in available.items()}
        await asyncio.gather(*(self._apply(name, stable[name], policies[name]) for name in available))
        for base_path in self._base_paths:
            self._label(base_path)

    def _look(self) -> tuple[dict[str, tuple[list[AvailableVersion], VersionPolicy]], list[str]]:
        """Return the versions and the policy of each model, and messages; base paths take precedence over the store."""
        messages: list[str] = []
        available: dict[str, tuple[list[AvailableVersion], VersionPolicy]] = {}
        if self._store is not None:
            in_store = available_versions.in_store(self._store, self._known.get(""))
            self._known[""] = {version.path: version for version in in_store}
            for version in in_store:
                available.setdefault(version.model, ([], self._store_policy))[0].append(version)
            messages += self._left_out.report(self._store, in_store)
        for base_path in self._base_paths:
            versions = available_versions.in_base_path(base_path, self._known.get(base_path.name))
            self._known[base_path.name] = {version.path: version for version in versions}
            available[base_path.name] = versions, base_path.policy
            messages += self._left_out.report(base_path.path, versions, base_path.name)
        for name, _ in self._served:
            available.setdefault(name, ([], self._store_policy))
        return available, messages

    async def _apply(self, name: str, versions: Sequence[AvailableVersion], policy: VersionPolicy) -> None:
        """Serve those versions of a model that its policy selects, and no others."""
        selected = available_versions.select(versions, policy)
        for available in reversed(selected):  # the newest first, because clients wait for it
            await self._register(available)
        registered = self._registry.models.get(name)
        if registered is None:
            return
        serving = [available for available in selected if available.version in registered.versions]
        if not serving:
            return  # the last version stays when its archive is removed: an empty folder is probably a mistake
        newest = serving[-1].version
        if registered.default != newest and self._is_newer(name, newest, registered.default):
            self._registry.set_default(name, newest)
            logs.SERVER.info("%s %s is the default version", name, newest)
        for model, version in [key for key in self._served if key[0] == name]:
            if version not in {available.version for available in serving} and version != registered.default:
                await self._unregister(model, version)

    async def _register(self, available: AvailableVersion) -> None:
        model = self._registry.models.get(available.model)
        if model is not None and available.version in model.versions:
            registered = self._served.setdefault((available.model, available.version), available)
            if registered.stamp != available.stamp:
                logs.SERVER.warning(
                    "%s has changed, and %s %s is served as it was: give it a new version",
                    *(available.path, available.model, available.version),
                )
                self._served[available.model, available.version] = available
            return
        if self._failed.get(available.path) == available.stamp:
            return
        registration = Registration(
            str(available.path),
            model_name=available.model,
            version=available.version,
            synchronous=True,
            by_operator=True,
        )
        try:
            await self._registry.register(registration)
        except ApiError as error:
            self._failed[available.path] = available.stamp
            logs.SERVER.error("%s is not served: %s", available.path, error.message)
            return
        self._failed.pop(available.path, None)
        self._served[available.model, available.version] = available
        logs.SERVER.info("%s %s is served, from %s", available.model, available.version, available.path)

    async def _unregister(self, name: str, version: str) -> None:
        try:
            await self._registry.unregister(name, version)
        except ApiError as error:
            if error.status != 404:  # unregistered by a client
                logs.SERVER.error("%s %s is not unregistered: %s", name, version, error.message)
                return
        self._served.pop((name, version), None)
        logs.SERVER.info("%s %s is not served any more", name, version)

    def _is_newer(self, name: str, version: str, default: str) -> bool:
        """Return whether a version replaces the default: if that is older, or was registered by this watcher."""
        return (name, default) in self._served or order(version) > order(default)

    def _label(self, base_path: BasePath) -> None:
        model = self._registry.models.get(base_path.name)
        for label, version in base_path.labels.items():
            if model is not None and version in model.versions and model.labels.get(label) != version:
                try:
                    self._registry.set_label(base_path.name, label, version)
                except ApiError as error:
                    logs.SERVER.error("the label %s of %s is not set: %s", label, base_path.name, error.message)
