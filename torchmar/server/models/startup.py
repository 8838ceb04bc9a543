"""The progress of loading models at startup, and the response to requests for them meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torchmar.server.api_error import ApiError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.http import Request
from torchmar.server.telemetry import logs

WAIT_SECONDS = 30.0  # that a request waits for a model to be registered, before it gets 503
RETRY_SECONDS = 1  # after which a client may try again


class StartupFailure(NamedTuple):
    """A model that could not be loaded at the start.

    Attributes:
        model: what the configuration says of it.
        message: why it could not be loaded.
    """

    model: StartupModel
    message: str


class Startup:
    """The models that a server loads at its start.

    Attributes:
        loading: whether some are still to be registered, or their workers have not been tried yet.
        failures: those that could not be registered, by name.
        warnings: what else the user should know.
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
        """Those that are still to be registered."""
        return tuple(self._pending)

    def is_pending(self, name: str) -> bool:
        """Return whether a model of this name may still be registered; of some archives the name is not known yet."""
        return any(model.name in ("", name) for model in self._pending)

    def registered(self, model: StartupModel) -> None:
        """Expect a model no more."""
        self._pending.remove(model)
        self._wake()

    def failed(self, model: StartupModel, name: str, message: str) -> None:
        """Record that a model could not be registered."""
        self.failures[name] = StartupFailure(model, message)
        self.registered(model)

    def warn(self, warning: str) -> None:
        """Log a warning, and keep it for who started the server."""
        logs.SERVER.warning("%s", warning)
        self.warnings.append(warning)

    def finish(self) -> None:
        """Record that the workers of all models have come up, or have failed."""
        self.loading = False
        self._pending.clear()
        self._wake()

    def forget(self, name: str) -> bool:
        """Drop the failure of a model, which is registered by now or not wanted any more; return whether it had one."""
        return self.failures.pop(name, None) is not None

    def not_found(self, name: str, refusal: ApiError) -> ApiError:
        """Return the error for a model that is not registered.

        Args:
            name: of the model.
            refusal: the error for a model that nothing is known of (404).

        Returns:
            503 while the model may still be registered; afterwards ``refusal``, with the reason if the server could
            not load it.
        """
        if self.is_pending(name):
            return StillLoading(self, name)
        if failure := self.failures.get(name):
            why = f"{failure.model.url} could not be loaded at the start: {failure.message}"
            return ApiError(refusal.status, refusal.type, f"{refusal.message}; {why}")
        return refusal

    async def finished(self) -> None:
        """Wait until `finish`."""
        while self.loading:
            self._changed.clear()
            await self._changed.wait()

    async def over(self, name: str, seconds: float) -> bool:
        """Wait until it is known whether a model is registered; return False if that takes longer than ``seconds``."""
        until = time.monotonic() + seconds
        while self.is_pending(name):
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), until - time.monotonic())
            except asyncio.TimeoutError:
                return False
        return True

    def _wake(self) -> None:
        self._changed.set()


class StillLoading(ApiError):
    """A request for a model that is not registered yet (503): the server is still loading what it starts with."""

    def __init__(self, startup: Startup, name: str) -> None:
        message = f'Model "{name}" is not loaded yet: the server is loading the models that it starts with. Try again.'
        super().__init__(503, "ServiceUnavailableException", message, {"Retry-After": str(RETRY_SECONDS)})
        self._startup, self._name = startup, name

    async def over(self) -> bool:
        """Wait until it is known whether the model is registered; return False if that takes too long."""
        return await self._startup.over(self._name, WAIT_SECONDS)

    def retry(self, request: Request, app: Callable[[Request], None], refuse: Callable[[ApiError], Any]) -> None:
        """Hand a request to an app again when its model is registered; answer with this error if that takes too long.

        Args:
            request: not answered yet.
            app: answers it; raises nothing that it can answer.
            refuse: answers it with an error.
        """

        async def wait() -> None:
            over = await self.over()
            if request.disconnected:
                return
            try:
                if over:
                    app(request)
                else:
                    refuse(self)
            except Exception as error:
                logs.SERVER.error("%s %s failed", request.method, request.path, exc_info=error)
                refuse(ApiError(500, "InternalServerException", "the server has failed; its log says how"))

        self._startup.tasks.start(wait())
