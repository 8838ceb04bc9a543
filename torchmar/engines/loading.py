"""The registration of an archive with a running server, until its workers answer."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from torchmar.archive import Archive
from torchmar.archive.store import order
from torchmar.connection import Endpoint
from torchmar.engines import state, worker_log
from torchmar.errors import ConflictError, ModelFailedError, NotFoundError, ServerError, TorchmarError
from torchmar.management import ManagementClient, ModelVersion

_UNAVAILABLE = 503


class Loader:
    """Loads archives, and reports models whose workers fail.

    Args:
        server: the server.
        folder: run folder of the server; its log has the tracebacks of workers.
        management: a client of its management API.
        model_api: whether the management API registers models; otherwise only the configuration does.
    """

    def __init__(self, server: Endpoint, folder: Path, management: ManagementClient, *, model_api: bool) -> None:
        self._server, self._folder, self._management, self._model_api = server, folder, management, model_api

    def load(self, archive: Path) -> ModelVersion:
        """Register an archive of the model store and wait until its workers answer.

        The newest version of a model becomes its default.

        Raises:
            ModelFailedError: a worker did not start; the error has its traceback, and the model is not registered.
            ArchiveError: the file is no archive.
        """
        with Archive(archive) as opened:
            name, version = opened.manifest.name, opened.manifest.version
            startup = opened.number("startupTimeout", 120)
            # If the configuration has no number of workers, that of the registration applies, whose default is 0.
            workers = None if opened.number("minWorkers", 0) else 1
        offset = worker_log.size(self._folder)
        try:
            self._management.register(archive.name, initial_workers=workers, timeout=startup + 30)
        except ConflictError as conflict:
            registered = self._management.describe(name, version)[0].url
            if Path(registered).name != archive.name:
                raise ConflictError(
                    f"{archive} is {name} {version}, and so is {registered}, which is registered",
                    status=conflict.status,
                    hint="remove one, or give it another version",
                ) from None
            self.wait_for(name, version, startup)  # the server loads it for config.properties
        except ServerError as error:
            if not self._model_api and error.status == 405:
                self.wait_for(name, version, startup)
                return self._management.describe(name, version)[0]
            with contextlib.suppress(NotFoundError):
                self._management.unregister(name, version)
            raise ModelFailedError(
                f"{name} {version} did not start: {error.message}",
                traceback=worker_log.traceback_since(self._folder, name, version, offset),
                hint=f"torchmar run {archive} shows the same without a server",
            ) from None
        default = self._management.describe(name)[0].version
        if order(version) > order(default):
            self._management.set_default(name, version)
        return self._management.describe(name, version)[0]

    def wait_for(self, name: str, version: str, seconds: float) -> None:
        """Wait until the workers of a version that the server loads at startup answer.

        Raises:
            ModelFailedError: the workers crash-loop, do not answer in time, or the server has not loaded the version.
        """
        deadline = time.monotonic() + seconds
        while not self._is_ready(name, version):
            if failure := self.failures().get((name, version)):
                raise failure
            if time.monotonic() > deadline:
                raise ModelFailedError(
                    f"{name} {version} does not answer after {seconds:.0f} s",
                    traceback=worker_log.traceback_since(self._folder, name, version),
                )
            time.sleep(0.1)

    def failures(self) -> dict[tuple[str, str], ModelFailedError]:
        """Return the models whose workers crash-loop, by name and version; empty if the server does not answer."""
        if not worker_log.failures(self._folder):  # a file is read first, so that the server usually gets no requests
            return {}
        with contextlib.suppress(TorchmarError):
            return {
                (version.model.name, version.model.version): state.failed(version)
                for version in state.versions_on(self._server, self._folder)
                if version.failure
            }
        return {}

    def _is_ready(self, name: str, version: str) -> bool:
        try:
            model = self._management.describe(name, version)[0]
        except NotFoundError as error:
            hint = ""
            if not self._model_api:
                hint = "set enable_model_api=true in config.properties, or name the archive in load_models"
            raise ModelFailedError(
                f"{name} {version} is not loaded: {error.message}", traceback="", hint=hint
            ) from None
        except ServerError as error:
            if error.status != _UNAVAILABLE:  # the server has not loaded the model yet
                raise
            return False
        return model.ready >= model.min_workers
