"""The models of the configuration, loaded at startup: fetched concurrently, registered in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from torchmar.server.api_error import ApiError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config import startup_models
from torchmar.server.config.settings import Settings
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.models.archive_cache import ArchiveCache
from torchmar.server.models.registration import Registration
from torchmar.server.models.registry import Registry, log_error
from torchmar.server.telemetry import logs


class StartupLoader:
    """Loads the models of a server's configuration.

    Args:
        registry: receives the models; its ``startup`` contains those to load.
        archives: fetches archives.
        settings: the server's configuration.
    """

    def __init__(self, registry: Registry, archives: ArchiveCache, settings: Settings) -> None:
        self._registry, self._archives, self._settings = registry, archives, settings
        self._tasks = BackgroundTasks(log_error)

    async def load(self) -> None:
        """Register the pending models in order; failures are logged and recorded in ``startup``.

        Workers start in the background, and restart if they fail; the startup is finished when all were tried.
        """
        startup = self._registry.startup
        models = startup.pending
        fetching = [
            self._tasks.start(
                self._archives.fetch(model.url, model_name=model.name, by_operator=True, digest=model.digest)
            )
            for model in models
        ]
        scaling = []
        for model, archive in zip(models, fetching, strict=True):
            registration = _registration(model)
            try:
                registration.check()
                labels = model.state.get("labels", ())
                scaling.append(await self._registry.add_at_start(registration, await archive, labels))
            except ApiError as error:
                if error.status != 409 or not self._is_registered(model):
                    await self._record_failure(model, registration, error)
                    continue
                # A client may have registered it since the server started.
            startup.registered(model)
        self._warn_of_models_without_match()
        self._tasks.start(self._finish(scaling))

    async def close(self) -> None:
        """Cancel running tasks."""
        await self._tasks.close()

    async def _record_failure(self, model: StartupModel, registration: Registration, error: ApiError) -> None:
        name = model.name or await asyncio.to_thread(self._archives.name_of, model.url) or model.fallback
        message = startup_models.explain(model, error.message)
        logs.SERVER.error("%s: %s is not loaded: %s", model.key, registration.shown_url, message)
        self._registry.startup.failed(model, name, message)

    def _is_registered(self, model: StartupModel) -> bool:
        """Return whether a client has registered the archive of a startup model, under the same name."""
        versions = [version for entry in self._registry.models.values() for version in entry.versions.values()]
        return any(
            version.url == model.url and model.name in ("", version.name) and not version.loaded_at_startup
            for version in versions
        )

    async def _finish(self, scaling: Sequence[asyncio.Task[Any]]) -> None:
        await asyncio.gather(*scaling, return_exceptions=True)
        self._registry.startup.finish()

    def _warn_of_models_without_match(self) -> None:
        models = self._registry.models
        for name, versions in self._settings.models.items():
            for version in versions:
                if not self._registry.has(name, version):
                    loaded_versions = models[name].versions if name in models else ()
                    loaded = f"; of {name}, {', '.join(loaded_versions)} is loaded" if loaded_versions else ""
                    self._registry.startup.warn(
                        f"models: {name} {version} matches no model that was loaded at the start{loaded}"
                    )


def _registration(model: StartupModel) -> Registration:
    return Registration(
        model.url,
        model_name=model.name,
        handler=model.state.get("handler", ""),
        runtime=model.state.get("runtimeType"),
        fallback_name=model.fallback,
        synchronous=False,
        state=model.state,
        version=model.served_version,
        digest=model.digest,
    )
