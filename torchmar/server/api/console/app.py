"""The console of this server: the routes of its JSON API for models and archives."""

from __future__ import annotations

import asyncio

from torchmar.server.api import parameters
from torchmar.server.api.console import archives, documents, form, trial
from torchmar.server.api.console.monitor import MonitorPages
from torchmar.server.api.console.pages import Manage, allow
from torchmar.server.api_error import ApiError
from torchmar.server.config.settings import Settings
from torchmar.server.http import Request
from torchmar.server.models.registry import Registry
from torchmar.server.models.sampling import Sampler
from torchmar.server.telemetry.events import Events
from torchmar.server.telemetry.history import History
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.telemetry.recent_logs import RecentLogs
from torchmar.server.tokens import Tokens


class Console(MonitorPages):
    """The console of a server.

    Args:
        registry: the models.
        tokens: those of clients, with which browsers sign in.
        settings: the server's configuration.
        metrics: counts the responses, and has the load.
        events: what happened to the models.
        recent_logs: the log.
    """

    def __init__(
        self,
        registry: Registry,
        tokens: Tokens,
        settings: Settings,
        metrics: Metrics,
        events: Events,
        recent_logs: RecentLogs,
    ) -> None:
        history = History()
        super().__init__(
            documents.Models(registry),
            history,
            events,
            recent_logs,
            tokens,
            metrics.answered,
            idle_s=settings.token_expiration_min * 60,
            port=settings.management.port,
            secure=settings.management.tls,
        )
        self._registry, self._settings, self._metrics = registry, settings, metrics
        self._sampler = Sampler(registry, metrics, history)
        self._sampler.on_tick = self._streams.on_tick

    def start(self) -> None:
        """Begin to sample the load."""
        self._tasks.start(self._sampler.run())

    def _api(self, request: Request, segments: list[str], manage: Manage) -> None:
        if segments[:1] == ["management"]:
            self._access.check(request)
            manage(request, segments[1:])
            return
        match segments:
            case ["models", name, version, "predict" | "explain" as verb]:
                allow(request, "POST")
                self._access.check(request)
                registered = self._registry.find(name, version)
                request_id = next(self._ids)
                trial.run(
                    request,
                    request_id,
                    registered,
                    self._metrics,
                    self._send,
                    explain=verb == "explain",
                    max_size=self._settings.max_response_size,
                )
                return
            case ["archives", "check"]:
                allow(request, "POST")
                self._access.check(request)
                sent = parameters.query(request).get("file", "archive.mar")
                self._start(request, self._in_thread(request, archives.checked, request.content, sent))
                return
        right = self._access.check(request)
        allow(request, "GET", "HEAD")
        query = parameters.query(request)
        match segments:
            case ["server"]:
                self._respond(request, documents.server(self._registry, self._settings, right))
            case ["models"]:
                self._respond(request, {"models": list(map(documents.model, self._registry.models.values()))})
            case ["models", name]:
                self._registry.find(name)
                self._respond(request, documents.model(self._registry.models[name]))
            case ["models", name, version, "form"]:
                self._start(request, self._in_thread(request, form.form, self._registry.find(name, version)))
            case ["models", name, version, "samples", number]:
                self._start(request, self._sample(request, name, version, number))
            case ["archives"]:
                in_use = archives.registered(self._registry)
                self._start(request, self._in_thread(request, archives.listed, self._settings.model_store, in_use))
            case ["archives", file]:
                in_use = archives.registered(self._registry)
                work = self._in_thread(request, archives.described, self._settings.model_store, file, in_use)
                self._start(request, work)
            case _:
                self._monitor(request, segments, query)

    async def _sample(self, request: Request, name: str, version: str, number: str) -> None:
        registered = self._registry.find(name, version)
        if not number.isascii() or not number.isdigit():
            raise ApiError(400, "BadRequestException", f"{number[:100]!r} is not the number of a sample.")
        body, content_type = await asyncio.to_thread(form.sample_body, registered, int(number[:9]))
        self._send(request, 200, body, content_type, ())
