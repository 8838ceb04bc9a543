"""The registered models and their versions: register, scale, set default, unregister."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from torchmar.server.api_error import ApiError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config import startup_models
from torchmar.server.config.settings import Settings
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.models import serving_config
from torchmar.server.models.archive_cache import ArchiveCache, CachedArchive
from torchmar.server.models.serving_config import Registration, ServingConfig
from torchmar.server.models.startup import Startup
from torchmar.server.telemetry import logs
from torchmar.server.workers.pool import Pool, PoolObserver
from torchmar.server.workers.preprocess_pool import StagedPool
from torchmar.server.workers.processes import ForkServer

__all__ = ["Model", "Registration", "Registry", "Version"]


class Version:
    """One registered version of a model.

    Attributes:
        name: of the model, which may be another than the archive's.
        version: from the archive.
        url: what it was registered as.
        handler: what the registration names in place of the archive's; empty: the archive's.
        source: its archive.
        pool: its queue and its workers.
        serving: what it is served with.
        loaded_at_startup: whether the server's configuration loads it.
        removed: set when it is registered no more.
        fork_server: the parent of its workers where it has one of its own; None: they have that of all models.
    """

    def __init__(
        self,
        url: str,
        source: CachedArchive,
        pool: Pool,
        serving: ServingConfig,
        *,
        handler: str = "",
        loaded_at_startup: bool = False,
        fork_server: ForkServer | None = None,
    ) -> None:
        self.name, self.version = serving.pool.name, serving.pool.version
        self.url, self.source, self.pool, self.serving = url, source, pool, serving
        self.handler, self.loaded_at_startup, self.fork_server = handler, loaded_at_startup, fork_server
        self.removed = asyncio.Event()

    def deadline(self) -> float | None:
        """Return until when a request that comes now may wait for a worker, by `time.monotonic`; None: for ever."""
        return time.monotonic() + self.serving.client_timeout if self.serving.client_timeout else None


class Model:
    """A model: its versions, in the order in which they came, and the one that is asked when none is named."""

    def __init__(self, name: str, default: str) -> None:
        self.name, self.default = name, default
        self.versions: dict[str, Version] = {}


class Registry:
    """All models of a server. Everything here happens in the server's loop.

    Args:
        sources: where archives come from.
        fork_server: where workers come from.
        settings: the server's configuration.
        tell: callbacks for events of pools.

    Attributes:
        models: by name.
        startup: how far it is with the models that it loads at its start.
        on_change: called when versions, their workers or the default have changed; not for the start.
    """

    def __init__(self, sources: ArchiveCache, fork_server: ForkServer, settings: Settings, tell: PoolObserver) -> None:
        self.models: dict[str, Model] = {}
        self.startup = Startup()
        self.on_change: Callable[[], None] = lambda: None
        self._sources, self._fork_server, self._settings, self._tell = sources, fork_server, settings, tell
        self._tasks = BackgroundTasks(_log_error)

    def find(self, name: str, version: str | None = None) -> Version:
        """Return a version, the default one if none is named.

        Raises:
            ApiError: 404; there is none.
            StillLoading: 503; the server has not registered yet all that it loads at its start.
        """
        model = self.models.get(name)
        if model is None:
            not_found = ApiError(404, "ModelNotFoundException", f"Model not found: {name}")
            raise self.startup.not_found(name, not_found)
        found = model.versions.get(model.default if version is None else version)
        if found is None:
            message = f"Model version: {version} does not exist for model: {name}"
            raise self.startup.not_found(name, ApiError(404, "ModelVersionNotFoundException", message))
        return found

    async def load(self) -> None:
        """Register what `startup` expects, in that order; what cannot be is logged and kept there as a failure.

        Workers come up in the background, and come again if they do not; `startup` is finished when all were tried.
        """
        startup = self.startup
        models = startup.pending
        fetching = [
            self._tasks.start(self._sources.fetch(model.url, model_name=model.name, by_operator=True))
            for model in models
        ]
        scaling = []
        for model, fetched in zip(models, fetching, strict=True):
            asked = Registration(
                model.url,
                model.name,
                model.state.get("handler", ""),
                model.state.get("runtimeType"),
                fallback_name=model.fallback,
                synchronous=False,
                state=model.state,
            )
            try:
                asked.check()
                found = self._take(asked, await fetched, at_start=True)
            except ApiError as refusal:
                if refusal.status == 409 and self._is_registered(model):  # by a client, since the server started
                    startup.registered(model)
                    continue
                name = model.name or await asyncio.to_thread(self._sources.name_of, model.url) or model.fallback
                message = startup_models.explain(model, refusal.message)
                logs.SERVER.error("%s: %s is not loaded: %s", model.key, model.url, message)
                startup.failed(model, name, message)
                continue
            scaling.append(await self._begin(self._scale(found, found.serving.min_workers, found.serving.max_workers)))
            startup.registered(model)
        self._warn_of_models_without_match()
        self._tasks.start(self._finish_startup(scaling))

    def _is_registered(self, model: StartupModel) -> bool:
        """Return whether a client has registered the archive of a startup model, under the same name."""
        versions = [version for found in self.models.values() for version in found.versions.values()]
        return any(
            version.url == model.url and model.name in ("", version.name) and not version.loaded_at_startup
            for version in versions
        )

    async def _finish_startup(self, scaling: Sequence[asyncio.Task[Any]]) -> None:
        await asyncio.gather(*scaling, return_exceptions=True)
        self.startup.finish()

    def _warn_of_models_without_match(self) -> None:
        for name, versions in self._settings.models.items():
            for version in versions:
                if not self._is_there(name, version):
                    known = self.models[name].versions if name in self.models else ()
                    loaded = f"; of {name}, {', '.join(known)} is loaded" if known else ""
                    self.startup.warn(f"models: {name} {version} matches no model that was loaded at the start{loaded}")

    async def register(self, asked: Registration) -> Version:
        """Register an archive and start its workers; one that fails leaves nothing behind.

        Args:
            asked: what is wanted.

        Returns:
            The version; its workers answer by then, unless the registration is not synchronous.

        Raises:
            ApiError: 400 or 404, there is no such archive, or none that is served here; 409, the version is registered
                already, or at this moment; 500, its workers do not load.
        """
        asked.check()
        source = await self._sources.fetch(asked.url, asked.ignored_checks, model_name=asked.model_name)
        found = self._take(asked, source)
        low, high = found.serving.min_workers, found.serving.max_workers
        if not asked.synchronous:
            await self._begin(self._scale(found, low, high))
            self.on_change()
            return found
        try:
            up = await self._scale(found, low, high)
        except BaseException:  # the server stops, or workers cannot be started at all
            await asyncio.shield(self._tasks.start(self._undo(found)))
            raise
        if not up:
            failure = found.pool.failure
            await self._undo(found)
            raise _did_not_start(found.name, found.version, failure)
        self.on_change()
        return found

    async def scale(
        self,
        name: str,
        version: str | None,
        min_workers: int,
        max_workers: int,
        *,
        synchronous: bool = True,
    ) -> None:
        """Set how many workers a version has. Those that go answer first what they are at, or what waits for them.

        Args:
            name: of the model.
            version: None is the default one.
            min_workers: how many there are to be.
            max_workers: how many there may be: of more than that the rest goes.
            synchronous: whether to wait until they answer, or have gone.

        Raises:
            ApiError: 400, the numbers make no sense; 404, there is no such version; 500, a worker does not load, and
                will be tried again.
        """
        if max_workers < min_workers:
            raise ApiError(400, "BadRequestException", "max_worker cannot be less than min_worker.")
        if min_workers < 0:
            raise ApiError(400, "BadRequestException", "min_worker cannot be less than 0.")
        serving_config.check_workers("min_worker", min_workers)
        found = self.find(name, version)
        doing = self._scale(found, min_workers, max_workers)
        if not synchronous:
            await self._begin(doing)
        elif not await doing:
            raise _did_not_start(name, version, found.pool.failure)
        self.on_change()

    def set_default(self, name: str, version: str) -> None:
        """Make a version the one that is asked when none is named.

        Raises:
            ApiError: 404, there is no such version; 409, none of its workers answers while the default's do, so that
                all requests would fail from then on.
        """
        model = self.models.get(name)
        if model is None:
            raise self.startup.not_found(name, ApiError(404, "ModelNotFoundException", f"Model not found: {name}"))
        found = model.versions.get(version)
        if found is None:
            message = f"Model version {version} does not exist for model {name}"
            raise ApiError(404, "ModelVersionNotFoundException", message)
        pool = found.pool
        if self.find(name).pool.ready and (not pool.min_workers or (pool.failure and not pool.ready)):
            why = "has workers that do not load" if pool.min_workers else "has no workers"
            message = (
                f"Version {version} of model {name} {why}, and would leave every request unanswered. "
                f"Scale it first: PUT /models/{name}/{version}?min_worker=1&synchronous=true"
            )
            raise ApiError(409, "ConflictStatusException", message)
        model.default = version
        self.on_change()

    async def unregister(self, name: str, version: str | None = None) -> None:
        """Remove a version: no more requests reach it, those it has are answered, then its workers end.

        That takes as long as a worker may, which is its ``response_timeout``.

        Args:
            name: of the model.
            version: None is the default one, which can be removed only if it is the last.

        Raises:
            ApiError: 404, there is no such version; 403, it is the default one and not the last; 408, its requests are
                not answered within ``unregister_model_timeout``, and it stays registered.
        """
        if name not in self.models and self.startup.forget(name):
            self.on_change()  # it could not be loaded at the start, and is not wanted any more
            return
        found = self.find(name, version)
        model = self.models[name]
        if found.version == model.default and len(model.versions) > 1:
            raise ApiError(403, "InvalidModelVersionException", f"Cannot remove default version for model {name}")
        self._forget(found)
        # It goes on without the client that asked for it.
        await asyncio.shield(self._tasks.start(self._unregister(found)))
        self.on_change()

    async def _unregister(self, found: Version) -> None:
        """End a version that is found no more; if that takes too long, it is found again (408)."""
        seconds, patience = found.serving.pool.response_timeout, self._settings.unregister_model_timeout
        in_time = patience >= seconds or (patience and await found.pool.drain(patience))
        if not in_time and not self._is_there(found.name, found.version):
            self._put(found)
            message = f"Timed out while cleaning resources: {found.name}"
            raise ApiError(408, "RequestTimeoutException", message)
        await self._end(found, seconds)

    async def close(self, seconds: float) -> None:
        """Remove every version; what they are at is answered if that takes no longer than ``seconds``."""
        versions = [one for model in self.models.values() for one in model.versions.values()]
        for one in versions:
            self._forget(one)
        await asyncio.gather(*(self._end(one, seconds) for one in versions))
        await self._tasks.close()

    def _take(self, asked: Registration, source: CachedArchive, *, at_start: bool = False) -> Version:
        """Take up a version whose archive is there; release it if it cannot be served."""
        try:
            serving = serving_config.resolve(asked, source, self._settings, at_start=at_start)
            found = self._add(asked, source, serving, at_start)
        except BaseException:
            self._sources.release(source)
            raise
        self.startup.forget(found.name)
        return found

    def _add(self, asked: Registration, source: CachedArchive, serving: ServingConfig, at_start: bool) -> Version:
        """Take a version up. There is no waiting in here, so that of several at once exactly one is first."""
        name, version = serving.pool.name, serving.pool.version
        if self._is_there(name, version):
            message = f"Model version {version} is already registered for model {name}"
            raise ApiError(409, "ConflictStatusException", message)
        requirements = serving.pool.requirements
        own = self._fork_server.with_packages(requirements) if requirements else None
        kind = StagedPool if serving.pool.preprocess_workers else Pool
        pool = kind(own or self._fork_server, serving.pool, self._tell)
        found = Version(
            asked.url, source, pool, serving, handler=asked.handler, loaded_at_startup=at_start, fork_server=own
        )
        self._put(found)
        return found

    def _put(self, found: Version) -> None:
        """Have a version found."""
        model = self.models.setdefault(found.name, Model(found.name, found.version))
        model.versions[found.version] = found
        found.removed.clear()

    async def _scale(self, found: Version, low: int, high: int) -> bool:
        """Scale a pool; a version that is removed meanwhile has not come up."""
        pool = found.pool
        if not low and pool.ready:
            pool.min_workers = 0  # from here on nothing new is taken
            await pool.drain(found.serving.pool.response_timeout)
            if pool.min_workers:
                return True  # another call scaled the version up while it drained
        scaling = asyncio.ensure_future(pool.scale(low, high))
        removed = asyncio.ensure_future(found.removed.wait())
        try:
            await asyncio.wait((scaling, removed), return_when=asyncio.FIRST_COMPLETED)
            return scaling.done() and scaling.result()
        finally:
            for task in (scaling, removed):
                task.cancel()

    def _forget(self, found: Version) -> bool:
        """Have a version found no more; tell whether it was until now. There is no waiting in here, as in `_add`."""
        model = self.models.get(found.name)
        if model is None or model.versions.get(found.version) is not found:
            return False
        del model.versions[found.version]
        if not model.versions:
            del self.models[found.name]
        elif model.default == found.version:
            model.default = next(iter(model.versions))
        found.removed.set()
        return True

    async def _end(self, found: Version, seconds: float = 0) -> None:
        """End a version that is found no more; what it is at has so many seconds."""
        try:
            if seconds and found.pool.ready:
                await found.pool.drain(seconds)
        finally:
            await found.pool.close()
            if found.fork_server:
                await found.fork_server.end()
            self._sources.release(found.source)
            if not self._is_there(found.name, found.version):
                self._tell.forget(found.name, found.version)

    def _is_there(self, name: str, version: str) -> bool:
        return name in self.models and version in self.models[name].versions

    async def _undo(self, found: Version) -> None:
        if self._forget(found):
            await self._end(found)

    async def _begin(self, scaling: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Scale in the background; requests that come next find it begun, and wait for its workers."""
        task = self._tasks.start(scaling)
        await asyncio.sleep(0)
        return task


def _log_error(error: BaseException) -> None:
    if not isinstance(error, ApiError):  # which the caller that awaits the task sends or logs
        logs.SERVER.error("workers could not be started or ended: %s", error)


# Of the last line of a worker's traceback: Python's, CUDA's, and torch's on a CPU.
_OUT_OF_MEMORY = re.compile(r"([\w.]*MemoryError\b|.*CUDA out of memory|.*can't allocate memory)")


def _did_not_start(name: str, version: str | None, failure: str) -> ApiError:
    """Return TorchServe's error, followed by the worker's last output; 507 if its memory did not suffice."""
    why = failure.splitlines()[-1].strip() if failure else ""
    version_text = "null" if version is None else version
    message = f"Failed to start workers for model {name} version: {version_text}" + (f": {why}" if why else "")
    return ApiError(507 if _OUT_OF_MEMORY.match(why) else 500, "InternalServerException", message)
