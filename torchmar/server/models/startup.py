"""The progress of loading models at startup, and the response to requests for them in the meantime."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torchmar.server.api_error import ApiError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.http import Request
from torchmar.server.models import archive_urls
from torchmar.server.telemetry import logs

WAIT_SECONDS = 30.0  # time that a request waits for a model's registration before it gets 503
RETRY_SECONDS = 1  # the Retry-After header of that response


class StartupFailure(NamedTuple):
    """A model that could not be loaded at startup.

    Attributes:
        model: its entry in the configuration.
        message: the reason.
    """

    model: StartupModel
    message: str


class Startup:
    """The models that a server loads at its start.

    Attributes:
        loading: whether some models are not registered yet, or their workers are still starting for the first time.
        failures: models that could not be registered, by name.
        warnings: warnings for the user.
        tasks: requests that wait for a model.
    """

    def __init__(self) -> None:
        self.loading = False
        self.failures: dict[str, StartupFailure] = {}
        self.warnings: list[str] = []
        self.tasks = BackgroundTasks()
        self._pending: list[StartupModel] = []
        self._changed = asyncio.Event()

    def begin(self, models: Iterable[StartupModel]) -> None:
        """Expect models; if there are any, the server is not ready until `finish`."""
        self._pending = list(models)
        self.loading = bool(self._pending)

    @property
    def pending(self) -> tuple[StartupModel, ...]:
        """The models that are not registered yet."""
        return tuple(self._pending)

    def is_pending(self, name: str) -> bool:
        """Return whether a model with this name may still be registered; the name in an archive is not known before."""
        return any(model.name in ("", name) for model in self._pending)

    def registered(self, model: StartupModel) -> None:
        """Record that a model is registered."""
        self._pending.remove(model)
        self._changed.set()

    def failed(self, model: StartupModel, name: str, message: str) -> None:
        """Record that a model could not be registered."""
        self.failures[name] = StartupFailure(model, message)
        self._pending.remove(model)
        self._changed.set()

    def warn(self, warning: str) -> None:
        """Log a warning, and keep it for the startup report."""
        logs.SERVER.warning("%s", warning)
        self.warnings.append(warning)

    def finish(self) -> None:
        """Record that the workers of all models are ready or have failed."""
        self.loading = False
        self._pending.clear()
        self._changed.set()

    def forget(self, name: str) -> bool:
        """Drop the failure of a model that a client registers or unregisters; return whether there was one."""
        return self.failures.pop(name, None) is not None

    def not_found(self, name: str, error: ApiError) -> ApiError:
        """Return the error for a model that is not registered.

        Args:
            name: name of the model.
            error: error for a model that is not in the configuration (404).

        Returns:
            503 while the model may still be registered; afterwards ``error``, with the reason if the server could not
            load it.
        """
        if self.is_pending(name):
            return StillLoading(self, name)
        if failure := self.failures.get(name):
            shown_url = archive_urls.without_secrets(failure.model.url)
            reason = f"{shown_url} could not be loaded at the start: {failure.message}"
            return ApiError(error.status, error.type, f"{error.message}; {reason}")
        return error

    async def wait_until_finished(self) -> None:
        """Wait until `finish`."""
        while self.loading:
            self._changed.clear()
            await self._changed.wait()

    async def wait_for(self, name: str, timeout_s: float) -> bool:
        """Wait until a model is no longer pending; return False if that takes longer than ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self.is_pending(name):
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                return False
        return True


class StillLoading(ApiError):
    """A request for a model that is not registered yet (503), because the server is still loading its models."""

    def __init__(self, startup: Startup, name: str) -> None:
        message = f'Model "{name}" is not loaded yet: the server is loading the models that it starts with. Try again.'
        super().__init__(503, "ServiceUnavailableException", message, {"Retry-After": str(RETRY_SECONDS)})
        self._startup, self._name = startup, name

    async def wait(self) -> bool:
        """Wait until the model is no longer pending; return False if that takes too long."""
        return await self._startup.wait_for(self._name, WAIT_SECONDS)

    def retry(self, request: Request, app: Callable[[Request], None], respond_error: Callable[[ApiError], Any]) -> None:
        """Pass a request to an app again when its model is no longer pending; after a timeout, respond with 503.

        Args:
            request: request without a response.
            app: responds to the request, including errors.
            respond_error: responds to the request with an error.
        """

        async def wait_and_respond() -> None:
            in_time = await self.wait()
            if request.disconnected:
                return
            try:
                if in_time:
                    app(request)
                else:
                    respond_error(self)
            except Exception as error:
                logs.SERVER.error("%s %s failed", request.method, request.path, exc_info=error)
                respond_error(ApiError(500, "InternalServerException", "the server has failed; its log says how"))

        self._startup.tasks.start(wait_and_respond())
