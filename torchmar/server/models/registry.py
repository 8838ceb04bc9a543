"""The registered models and their versions: register, scale, set default, unregister."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from torchmar.server.api_error import ApiError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config.settings import Settings
from torchmar.server.models import archive_urls, serving_config
from torchmar.server.models.archive_cache import ArchiveCache, CachedArchive
from torchmar.server.models.download import DownloadProgress
from torchmar.server.models.registration import Registration, check_workers
from torchmar.server.models.routes import Routes
from torchmar.server.models.serving_config import ServingConfig
from torchmar.server.models.startup import Startup
from torchmar.server.telemetry import logs
from torchmar.server.telemetry.events import Events
from torchmar.server.workers.pool_options import PoolObserver
from torchmar.server.workers.pools import Pools, VersionPool

T = TypeVar("T")
LABEL = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # the same in Python and in ECMA 262, for OpenAPI


class Version:
    """One registered version of a model.

    Attributes:
        name: name of the model, which may differ from the archive's.
        version: version from the archive.
        url: URL of its registration.
        handler: handler of its registration, in place of the archive's; empty: the archive's.
        archive: its archive.
        pool: its queue and its workers.
        serving: its configuration.
        loaded_at_startup: whether it is in the server's configuration.
        removed: set when the version is no longer registered.
    """

    def __init__(
        self,
        url: str,
        archive: CachedArchive,
        pool: VersionPool,
        serving: ServingConfig,
        *,
        handler: str = "",
        loaded_at_startup: bool = False,
    ) -> None:
        self.name, self.version = serving.pool.name, serving.pool.version
        self.url, self.archive, self.pool, self.serving = url, archive, pool, serving
        self.handler, self.loaded_at_startup = handler, loaded_at_startup
        self.removed = asyncio.Event()

    @property
    def shown_url(self) -> str:
        """The URL of its registration without its query, which may be a signature."""
        return archive_urls.without_secrets(self.url)

    def deadline(self) -> float | None:
        """Return the time until which a request received now may wait, by `time.monotonic`; None: no limit."""
        return time.monotonic() + self.serving.client_timeout if self.serving.client_timeout else None


class Model:
    """A model: its versions in the order of their registration, the default version, and the labels of versions.

    The default version answers requests without a version; ``former_defaults`` were the default before it.
    """

    def __init__(self, name: str, default: str) -> None:
        self.name, self.default = name, default
        self.former_defaults: list[str] = []
        self.versions: dict[str, Version] = {}
        self.labels: dict[str, str] = {}


class Registry:
    """All models of a server. The methods are called in the server's loop.

    Args:
        archives: fetches archives.
        pools: makes the pools of versions.
        settings: the server's configuration.
        observer: callbacks for events of pools.
        events: receives the changes of models; None: changes are not recorded.

    Attributes:
        models: registered models by name.
        startup: progress of loading the models of the configuration.
        routes: the user's paths for models.
        withdrawn: whether the server is about to end: load balancers see it as not ready, but it still answers.
        on_change: called when versions, their workers, the default or routes have changed; but not while the models of
            the configuration are loaded.
    """

    def __init__(
        self,
        archives: ArchiveCache,
        pools: Pools,
        settings: Settings,
        observer: PoolObserver,
        events: Events | None = None,
    ) -> None:
        self.models: dict[str, Model] = {}
        self.startup = Startup()
        self.withdrawn = False
        self.routes = Routes(settings.routes)
        self.routes.on_change.append(lambda: self.on_change())
        self.on_change: Callable[[], None] = lambda: None
        self._archives, self._pools, self._settings, self._observer = archives, pools, settings, observer
        self._events = Events() if events is None else events
        self._tasks = BackgroundTasks(log_error)

    @property
    def downloads(self) -> list[DownloadProgress]:
        """The running downloads of archives."""
        return self._archives.downloads

    def find(self, name: str, version: str | None = None) -> Version:
        """Return a version; without a name of a version, the default one.

        Raises:
            ApiError: 404; the version does not exist.
            StillLoading: 503; the server has not yet registered all models of its configuration.
        """
        model = self.models.get(name)
        if model is None:
            not_found = ApiError(404, "ModelNotFoundException", f"Model not found: {name}")
            raise self.startup.not_found(name, not_found)
        registered = model.versions.get(model.default if version is None else version)
        if registered is None:
            message = f"Model version: {version} does not exist for model: {name}"
            raise self.startup.not_found(name, ApiError(404, "ModelVersionNotFoundException", message))
        return registered

    @property
    def problem(self) -> str:
        """The reason why workers can be neither started nor replaced now; empty: they can."""
        return self._pools.problem()

    def check_changes(self) -> None:
        """Raise ApiError if models cannot be changed now (503), or only on the server that this one follows (409)."""
        if problem := self.problem:
            raise ApiError(503, "ServiceUnavailableException", f"{problem[0].upper()}{problem[1:]}.")
        if refusal := self._pools.refusal():
            raise ApiError(409, "ConflictStatusException", f"{refusal[0].upper()}{refusal[1:]}.")

    async def add_at_start(
        self, registration: Registration, archive: CachedArchive, labels: Iterable[str] = ()
    ) -> asyncio.Task[bool]:
        """Register an archive of the server's configuration, and start its workers in the background.

        Args:
            registration: its parameters.
            archive: its archive, which is released if the registration fails.
            labels: labels of the version.

        Returns:
            The task that starts the workers.

        Raises:
            ApiError: 400, this server cannot serve it; 409, the version is already registered.
        """
        version = self._add(registration, archive, at_start=True)
        self.models[version.name].labels |= dict.fromkeys(labels, version.version)
        scaling = await self._begin(self._scale(version, version.serving.min_workers, version.serving.max_workers))
        self._record_registration(version)
        return scaling

    async def register(self, registration: Registration) -> Version:
        """Register an archive and start its workers; if the workers do not start, the registration is undone.

        Args:
            registration: its parameters.

        Returns:
            The version; its workers are ready, unless the registration is not synchronous.

        Raises:
            ApiError: 400 or 404, the archive does not exist, or this server cannot serve it; 409, the version is
                already registered, or is being registered; 500, its workers do not load.
        """
        registration.check()
        archive = await self._archives.fetch(
            registration.url,
            registration.ignored_checks,
            model_name=registration.model_name,
            by_operator=registration.by_operator,
            digest=registration.digest,
        )
        version = self._add(registration, archive)
        min_workers, max_workers = version.serving.min_workers, version.serving.max_workers
        if not registration.synchronous:
            await self._begin(self._scale(version, min_workers, max_workers))
            self._record_registration(version)
            self.on_change()
            return version
        try:
            ready = await self._scale(version, min_workers, max_workers)
        except BaseException:  # the server stops, or workers cannot be started at all
            await asyncio.shield(self._tasks.start(self._undo(version)))
            raise
        if not ready:
            failure = version.pool.failure
            await self._undo(version)
            raise _workers_failed(version.name, version.version, failure)
        self._record_registration(version)
        self.on_change()
        return version

    def _record_registration(self, version: Version) -> None:
        self._events.add("registered", f"registered from {version.shown_url}", version.name, version.version)

    async def scale(
        self,
        name: str,
        version: str | None,
        min_workers: int,
        max_workers: int,
        *,
        synchronous: bool = True,
    ) -> None:
        """Set the number of workers of a version. Workers that are removed complete their requests first.

        Args:
            name: name of the model.
            version: version of the model; None: the default version.
            min_workers: least number of workers; missing workers are started.
            max_workers: largest number of workers; further workers are removed.
            synchronous: whether to wait until new workers are ready, or removed ones have ended.

        Raises:
            ApiError: 400, the numbers are inconsistent; 404, the version does not exist; 500, a worker does not load;
                the pool will try again.
        """
        if max_workers < min_workers:
            raise ApiError(400, "BadRequestException", "max_worker cannot be less than min_worker.")
        if min_workers < 0:
            raise ApiError(400, "BadRequestException", "min_worker cannot be less than 0.")
        check_workers("min_worker", min_workers)
        registered = self.find(name, version)
        self._events.add(
            "scaled", _scaling(registered.pool.min_workers, min_workers, max_workers), name, registered.version
        )
        scaling = self._scale(registered, min_workers, max_workers)
        if not synchronous:
            await self._begin(scaling)
        elif not await scaling:
            raise _workers_failed(name, version, registered.pool.failure)
        self.on_change()

    def set_default(self, name: str, version: str) -> None:
        """Make a version the default for requests without a version.

        Raises:
            ApiError: 404, the version does not exist; 409, none of its workers is ready although the current default's
                are, so that all requests would fail.
        """
        model = self.models.get(name)
        if model is None:
            raise self.startup.not_found(name, ApiError(404, "ModelNotFoundException", f"Model not found: {name}"))
        registered = model.versions.get(version)
        if registered is None:
            message = f"Model version {version} does not exist for model {name}"
            raise ApiError(404, "ModelVersionNotFoundException", message)
        pool = registered.pool
        if self.find(name).pool.ready and (not pool.min_workers or (pool.failure and not pool.ready)):
            reason = "has workers that do not load" if pool.min_workers else "has no workers"
            message = (
                f"Version {version} of model {name} {reason}, and would leave every request unanswered. "
                f"Scale it first: PUT /models/{name}/{version}?min_worker=1&synchronous=true"
            )
            raise ApiError(409, "ConflictStatusException", message)
        if version != model.default:
            switched_back = version in model.former_defaults
            model.former_defaults = [former for former in model.former_defaults if former != version]
            if not switched_back:
                model.former_defaults.append(model.default)
            self._events.add(
                "default_switched_back" if switched_back else "default_switched",
                f"the default was switched {'back ' if switched_back else ''}from {model.default} to {version}",
                name,
                version,
            )
        model.default = version
        self.on_change()

    def set_label(self, name: str, label: str, version: str) -> None:
        """Set a label, for requests of TensorFlow Serving's clients, to a version; it may belong to another version
        before.

        Raises:
            ApiError: 404, the version does not exist; 400, the label is malformed; 409, the label is the name of
                another version, which it would hide.
        """
        if not re.fullmatch(LABEL, label):
            message = f"{label!r} is not a label: letters, digits, '.', '_' and '-', such as stable."
            raise ApiError(400, "BadRequestException", message)
        self.find(name, version)
        model = self.models[name]
        if label in model.versions and label != version:
            message = f"{label} is a version of model {name}, and cannot be the label of version {version}."
            raise ApiError(409, "ConflictStatusException", message)
        model.labels[label] = version
        self.on_change()

    def remove_label(self, name: str, label: str) -> None:
        """Remove a label.

        Raises:
            ApiError: 404, the model or label does not exist.
        """
        self.find(name)
        if self.models[name].labels.pop(label, None) is None:
            raise ApiError(404, "ModelVersionNotFoundException", f"Model {name} has no label {label}")
        self.on_change()

    async def unregister(self, name: str, version: str | None = None) -> None:
        """Remove a version: it gets no more requests and completes its own; then its workers end.

        This takes at most the version's ``response_timeout``.

        Args:
            name: name of the model.
            version: version of the model; None: the default version, which can be removed only as the last one.

        Raises:
            ApiError: 404, the version does not exist; 403, it is the default one and not the last; 408, its requests
                are not completed within ``unregister_model_timeout``, so that it stays registered.
        """
        if name not in self.models and self.startup.forget(name):
            self.on_change()  # a model that could not be loaded at startup
            return
        registered = self.find(name, version)
        model = self.models[name]
        if registered.version == model.default and len(model.versions) > 1:
            raise ApiError(403, "InvalidModelVersionException", f"Cannot remove default version for model {name}")
        self._remove(registered)
        # Shielded, so that it continues when the client disconnects.
        await asyncio.shield(self._tasks.start(self._unregister(registered)))
        self._events.add("unregistered", "unregistered", name, registered.version)
        self.on_change()

    async def drop(self, name: str, version: str) -> None:
        """Remove a version, even the default one, that another server has removed; its requests are completed.

        Raises:
            ApiError: 404, there is no such version.
        """
        registered = self.find(name, version)
        self._remove(registered)
        await self._end(registered, registered.serving.pool.response_timeout)
        self.on_change()

    async def _unregister(self, version: Version) -> None:
        """End a removed version; if its requests take too long, register it again (408)."""
        response_timeout, timeout = version.serving.pool.response_timeout, self._settings.unregister_model_timeout
        in_time = timeout >= response_timeout or (timeout and await version.pool.drain(timeout))
        if not in_time and not self.has(version.name, version.version):
            self._put(version)
            message = f"Timed out while cleaning resources: {version.name}"
            raise ApiError(408, "RequestTimeoutException", message)
        await self._end(version, response_timeout)

    async def close(self, timeout_s: float) -> None:
        """Remove all versions; wait up to ``timeout_s`` for their requests."""
        versions = [version for model in self.models.values() for version in model.versions.values()]
        for version in versions:
            self._remove(version)
        await asyncio.gather(*(self._end(version, timeout_s) for version in versions))
        await self._tasks.close()

    def _add(self, registration: Registration, archive: CachedArchive, *, at_start: bool = False) -> Version:
        """Add a version; release its archive if it cannot be served."""
        try:
            by_server = at_start or registration.by_operator
            serving = serving_config.resolve(registration, archive, self._settings, by_server=by_server)
            version = self._new_version(registration, archive, serving, at_start)
        except BaseException:
            self._archives.release(archive)
            raise
        self.startup.forget(version.name)
        return version

    def _new_version(
        self, registration: Registration, archive: CachedArchive, serving: ServingConfig, at_start: bool
    ) -> Version:
        # No await between the check and `_put`, so that exactly one of several concurrent registrations succeeds.
        name, version = serving.pool.name, serving.pool.version
        if self.has(name, version):
            message = f"Model version {version} is already registered for model {name}"
            raise ApiError(409, "ConflictStatusException", message)
        new_version = Version(
            registration.url,
            archive,
            self._pools.create(serving.pool, self._observer, archive.requirements, archive.venv),
            serving,
            handler=registration.handler,
            loaded_at_startup=at_start,
        )
        self._put(new_version)
        return new_version

    def _put(self, version: Version) -> None:
        """Make a version available to `find`."""
        model = self.models.setdefault(version.name, Model(version.name, version.version))
        model.versions[version.version] = version
        version.removed.clear()

    def _remove(self, version: Version) -> bool:
        """Make a version unavailable to `find`; return whether it was available. No await, as above."""
        model = self.models.get(version.name)
        if model is None or model.versions.get(version.version) is not version:
            return False
        del model.versions[version.version]
        if not model.versions:
            del self.models[version.name]
        elif model.default == version.version:
            model.default = next(iter(model.versions))
        model.labels = {label: other for label, other in model.labels.items() if other != version.version}
        model.former_defaults = [former for former in model.former_defaults if former != version.version]
        version.removed.set()
        return True

    def has(self, name: str, version: str) -> bool:
        """Return whether a version is registered."""
        return name in self.models and version in self.models[name].versions

    async def _scale(self, version: Version, min_workers: int, max_workers: int) -> bool:
        """Scale a pool; return whether its workers are ready; False for a version that is being removed."""
        pool = version.pool
        if not min_workers and pool.ready:
            pool.min_workers = 0  # from now on, new requests get an error
            await pool.drain(version.serving.pool.response_timeout)
            if pool.min_workers:
                return True  # another call scaled the version up while it drained
        scaling = asyncio.ensure_future(pool.scale(min_workers, max_workers))
        removal = asyncio.ensure_future(version.removed.wait())
        try:
            await asyncio.wait((scaling, removal), return_when=asyncio.FIRST_COMPLETED)
            return scaling.done() and scaling.result()
        finally:
            for task in (scaling, removal):
                task.cancel()

    async def _begin(self, scaling: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start scaling in the background; the next requests wait for its workers."""
        task = self._tasks.start(scaling)
        await asyncio.sleep(0)  # the task runs up to its first await
        return task

    async def _end(self, version: Version, drain_s: float = 0) -> None:
        """End the workers of a removed version and release its archive, after up to ``drain_s`` for its requests."""
        try:
            if drain_s and version.pool.ready:
                await version.pool.drain(drain_s)
        finally:
            await self._pools.release(version.pool)
            self._archives.release(version.archive)
            if not self.has(version.name, version.version):
                self._observer.on_unregister(version.name, version.version)

    async def _undo(self, version: Version) -> None:
        if self._remove(version):
            await self._end(version)


def log_error(error: BaseException) -> None:
    """Log the error of a background task."""
    if not isinstance(error, ApiError):  # the caller that awaits the task sends or logs an ApiError
        logs.SERVER.error("a change of workers in the background failed: %s", error)


def _scaling(before: int, min_workers: int, max_workers: int) -> str:
    """Return a text about a change of the number of workers."""
    workers = f"{min_workers} worker{'' if min_workers == 1 else 's'}"
    if max_workers > min_workers:
        workers = f"{min_workers} to {max_workers} workers"
    return f"scaled from {before} to {workers}" if before != min_workers else f"set to {workers}"


# The last line of a worker's traceback for lack of memory: from Python, CUDA, or torch on a CPU. The kernel kills
# processes without a traceback.
_OUT_OF_MEMORY = re.compile(
    r"([\w.]*MemoryError\b|.*CUDA out of memory|.*can't allocate memory|the process ended by signal 9 )"
)


def _workers_failed(name: str, version: str | None, failure: str) -> ApiError:
    """Return TorchServe's error, followed by the worker's last output; with 507 for lack of memory."""
    last_line = failure.splitlines()[-1].strip() if failure else ""
    version_text = "null" if version is None else version
    message = f"Failed to start workers for model {name} version: {version_text}" + (
        f": {last_line}" if last_line else ""
    )
    return ApiError(507 if _OUT_OF_MEMORY.match(last_line) else 500, "InternalServerException", message)
