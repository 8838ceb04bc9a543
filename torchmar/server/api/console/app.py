"""The console of this server: the routes of its JSON API for models and archives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from torchmar.checks import admission
from torchmar.server.api import parameters
from torchmar.server.api.console import archives, documents, files, form, reports, samples, trial
from torchmar.server.api.console.monitor import MonitorPages
from torchmar.server.api.console.pages import Manage, allow, document
from torchmar.server.api.console.rollout import Rollout
from torchmar.server.api.console.rollout_messages import Job
from torchmar.server.api.console.samples import SampleAnswers
from torchmar.server.api_error import ApiError
from torchmar.server.config.settings import Settings
from torchmar.server.http import Request
from torchmar.server.models.registry import Registry
from torchmar.server.models.sampling import Sampler
from torchmar.server.telemetry.events import Events
from torchmar.server.telemetry.history import History
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.telemetry.recent_logs import RecentLogs
from torchmar.server.tokens import FILE as KEY_FILE
from torchmar.server.tokens import Tokens


class Console(MonitorPages):
    """The console of a server.

    Args:
        registry: the models.
        tokens: tokens of clients, with which browsers sign in.
        settings: the server's configuration.
        metrics: counts the responses, and provides the load.
        events: events of the models.
        recent_logs: entries of the log.
        folder: the run folder.
    """

    def __init__(
        self,
        registry: Registry,
        tokens: Tokens,
        settings: Settings,
        metrics: Metrics,
        events: Events,
        recent_logs: RecentLogs,
        folder: Path,
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
        self._answers = SampleAnswers()
        self._rollout = Rollout(_template(settings, folder), folder, self._streams.send_rollout)
        self._streams.rollout = self._rollout.shown

    def start(self) -> None:
        """Start to sample the load."""
        self._tasks.start(self._sampler.run())

    async def close(self) -> None:
        """Stop a running change, and close the pages' streams."""
        await self._rollout.close()
        await super().close()

    def _api(self, request: Request, segments: list[str], manage: Manage) -> None:
        if not self._act(request, segments, manage):
            self._show(request, segments)

    def _act(self, request: Request, segments: list[str], manage: Manage) -> bool:
        """Answer a request that runs or changes something; return whether it is one."""
        match segments:
            case ["management", *rest]:
                self._access.check(request)
                manage(request, rest)
            case ["models", name, version, "predict" | "explain" as verb]:
                allow(request, "POST")
                self._access.check(request)
                self._run(request, name, version, explain=verb == "explain")
            case ["models", name, version, "samples", number, "run"]:
                allow(request, "POST")
                self._access.check(request)
                self._start(request, self._run_sample(request, name, version, number))
            case ["rollout", "plan"]:
                allow(request, "POST")
                self._access.check(request, change=False)  # it changes nothing, but it must come from the page
                self._start(request, self._plan(request))
            case ["rollout", "stop"]:
                allow(request, "POST")
                self._access.check(request)
                self._rollout.stop()
                self._respond(request, self._rollout.shown())
            case ["rollout", "apply" | "promote" | "rollback" as action]:
                allow(request, "POST")
                self._access.check(request)
                self._respond(request, self._rollout.start(action, document(request)))
            case ["archives"] if request.method == "POST":
                self._access.check(request)
                self._start(request, self._store(request))
            case ["archives", "check"]:
                allow(request, "POST")
                self._access.check(request)
                file = parameters.query(request).get("file", "archive.mar")
                self._start(request, self._in_thread(request, archives.checked, request.content, file))
            case _:
                return False
        return True

    def _show(self, request: Request, segments: list[str]) -> None:
        """Answer a request that only reads."""
        right = self._access.check(request)
        allow(request, "GET", "HEAD")
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
            case ["models", name, version, "samples"]:
                self._respond(request, {"answers": self._answers.of(self._registry.find(name, version))})
            case ["models", name, version, "samples", number]:
                self._start(request, self._sample(request, name, version, number))
            case ["archives"]:
                in_use = archives.registered(self._registry)
                self._start(request, self._in_thread(request, archives.listed, self._settings.model_store, in_use))
            case ["archives", file]:
                in_use = archives.registered(self._registry)
                work = self._in_thread(request, archives.described, self._settings.model_store, file, in_use)
                self._start(request, work)
            case ["archives", file, "reports", report]:
                self._start(request, self._report(request, file, report))
            case ["rollout"]:
                applied = self._rollout.applied() if right == "management" else {"deployment": ""}
                self._respond(request, {**self._rollout.shown(), **applied})
            case ["rollout", "state"]:
                self._start(request, self._state(request))
            case _:
                self._monitor(request, segments, parameters.query(request))

    def _run(self, request: Request, name: str, version: str, *, explain: bool) -> None:
        """Send a body of a page to a version, and respond with its answer."""
        registered = self._registry.find(name, version)
        trial.run(
            request,
            next(self._ids),
            registered,
            self._metrics,
            self._send,
            explain=explain,
            max_size=self._settings.max_response_size,
        )

    async def _plan(self, request: Request) -> None:
        deployment = document(request).get("deployment")
        if not isinstance(deployment, str):
            raise ApiError(
                400, "BadRequestException", 'The body must be {"deployment": ...}, the text of a deployment.'
            )
        self._respond(request, await self._rollout.plan(deployment))

    async def _state(self, request: Request) -> None:
        models = tuple(map(documents.signature, self._registry.models.values()))
        signature = models, tuple(self._registry.routes.by_path.items())
        self._respond(request, await self._rollout.overview(signature))

    async def _sample(self, request: Request, name: str, version: str, number: str) -> None:
        _, body, content_type = await asyncio.to_thread(form.sample, self._registry.find(name, version), number)
        self._send(request, 200, body, content_type, ())

    async def _run_sample(self, request: Request, name: str, version: str, number: str) -> None:
        """Send a sample to its version; the response contains the answer, and its differences from the expected one."""
        registered = self._registry.find(name, version)
        sample, body, content_type = await asyncio.to_thread(form.sample, registered, number)
        since = time.monotonic()

        def respond(
            request: Request, status: int, body: bytes, content_type: str, headers: Sequence[tuple[str, str]]
        ) -> None:
            milliseconds = (time.monotonic() - since) * 1000
            self._start(request, judge(status, body, content_type, milliseconds))

        async def judge(status: int, body: bytes, content_type: str, milliseconds: float) -> None:
            answer = await asyncio.to_thread(
                samples.judged, int(number), sample, status, body, content_type, milliseconds
            )
            self._answers.put(registered, answer)
            self._respond(request, answer)

        trial.run(
            request,
            next(self._ids),
            registered,
            self._metrics,
            respond,
            explain=bool(sample.get("explain")),
            max_size=self._settings.max_response_size,
            sample=(body, content_type),
        )

    async def _store(self, request: Request) -> None:
        """Write an archive from a browser into the model store."""
        settings = self._settings
        if not (settings.model_api and settings.console_uploads):
            key = "torchmar_console_uploads" if settings.model_api else "enable_model_api"
            raise ApiError(403, "InvalidKeyException", f"This server takes no archives: {key} is false.")
        file = parameters.query(request).get("file", "")
        ignored = settings.ignored_checks if settings.check_archives else tuple(admission.EVERYTHING)
        stored = await asyncio.to_thread(archives.stored, settings.model_store, request.content, file, ignored)
        self._respond(request, {"file": stored})

    async def _report(self, request: Request, file: str, name: str) -> None:
        path = archives.located(self._settings.model_store, file)
        body = await asyncio.to_thread(reports.page, path, name)
        self._on_answer(200)
        request.respond(200, body, "text/html; charset=utf-8", [*files.SECURITY_HEADERS, files.REPORT_POLICY])


def _template(settings: Settings, folder: Path) -> Job:
    """Return a job without an operation: it contains the addresses of this server."""
    return Job(
        kind="overview",
        inference=str(settings.inference),
        management=str(settings.management),
        key_file=str(folder / KEY_FILE) if settings.tokens else "",
        model_store=str(settings.model_store),
        ignored_checks=settings.ignored_checks if settings.check_archives else tuple(admission.EVERYTHING),
    )
