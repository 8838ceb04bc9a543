"""The console of another server: the routes of its JSON API for models and archives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torchmar.errors import TorchmarError
from torchmar.management import ManagementClient
from torchmar.remote_console import documents
from torchmar.remote_console.calls import call
from torchmar.remote_console.models import RemoteModels
from torchmar.remote_console.reader import SECONDS
from torchmar.server.api import parameters
from torchmar.server.api.console import archives
from torchmar.server.api.console.monitor import MonitorPages
from torchmar.server.api.console.pages import Manage, allow
from torchmar.server.api.console.trial import passed_headers
from torchmar.server.api_error import ApiError
from torchmar.server.http import Request
from torchmar.server.request_ids import HEADER
from torchmar.server.tokens import Tokens

_LONGEST_PATH = 4  # largest number of path segments in the management API


class RemoteConsole(MonitorPages):
    """The console of another server; the token of that server stays in this process.

    Args:
        models: models of the server.
        tokens: tokens with which browsers sign in.
        options: options of `torchmar.server.api.console.pages.Pages`.
    """

    def __init__(self, models: RemoteModels, tokens: Tokens, **options: Any) -> None:
        super().__init__(
            models, models.history, models.events, models.recent_logs, tokens, lambda status: None, **options
        )
        self._models, self._endpoint = models, models.target.endpoint
        models.on_tick, models.on_lost = self._streams.on_tick, self._streams.on_lost

    def start(self) -> None:
        """Start to read the server."""
        self._tasks.start(self._models.run())

    def _api(self, request: Request, segments: list[str], manage: Manage) -> None:
        right = self._access.check(request)
        query = parameters.query(request)
        match segments:
            case ["management", "models", *rest] if len(rest) < _LONGEST_PATH:
                self._start(request, self._manage(request, rest))
                return
            case ["models", name, version, "predict" | "explain" as verb]:
                allow(request, "POST")
                self._models.url(name, version)
                self._start(request, self._run(request, name, version, verb))
                return
            case ["archives", "check"]:
                allow(request, "POST")
                file = query.get("file", "archive.mar")
                self._start(request, self._in_thread(request, archives.checked, request.content, file))
                return
        allow(request, "GET", "HEAD")
        match segments:
            case ["server"]:
                self._respond(request, documents.server(self._models.target, self._models.snapshot, right))
            case ["models"]:
                self._respond(request, {"models": list(map(self._models.model, self._models.names()))})
            case ["models", name]:
                self._respond(request, self._models.model(name))
            case ["models", name, version, "form"]:
                url = self._models.url(name, version)
                self._start(request, self._in_thread(request, self._form, name, version, url))
            case ["models", name, version, "samples", number]:
                self._start(request, self._sample(request, name, version, number))
            case ["archives"]:
                self._archives(request, archives.listed)
            case ["archives", file]:
                self._archives(request, archives.described, file)
            case _:
                self._monitor(request, segments, query)

    async def _manage(self, request: Request, rest: list[str]) -> None:
        """Forward a call of the management API."""
        path = "/models" + "".join(f"/{quote(segment, safe='')}" for segment in rest)
        try:
            answer = await call(self._endpoint, "management", request.method, path, query=dict(request.query))
        finally:
            if rest:
                self._models.read_soon(rest[0])
        self._send(request, answer.status, answer.body, answer.content_type, ())

    async def _run(self, request: Request, name: str, version: str, verb: str) -> None:
        """Run a request; only its total time is known, not that of its steps."""
        kind = {"predict": "predictions", "explain": "explanations"}[verb]
        path = f"/{kind}/{quote(name, safe='')}/{quote(version, safe='')}"
        began = time.monotonic()
        answer = await call(
            self._endpoint, "inference", "POST", path, body=request.body, headers=passed_headers(request)
        )
        total = f"total;dur={(time.monotonic() - began) * 1000:.3f}"
        identity = answer.headers.get(HEADER)
        headers = [("Server-Timing", total), *([(HEADER, identity)] if identity else [])]
        self._send(request, answer.status, answer.body, answer.content_type, headers)

    def _form(self, name: str, version: str, url: str) -> dict[str, Any]:
        try:
            return self._models.store.form(name, version, url, self._tensors(name, version))
        except TorchmarError as error:
            raise ApiError(404, "ResourceNotFoundException", error.message) from None

    def _tensors(self, name: str, version: str) -> Mapping[str, Any]:
        """Return the handler's description of its tensors; empty if there is none."""
        try:
            with ManagementClient(self._endpoint, timeout=SECONDS) as client:
                described = client.describe(name, version, customized=True)[0].customized
        except TorchmarError:
            return {}
        return described if isinstance(described, Mapping) else {}

    async def _sample(self, request: Request, name: str, version: str, number: str) -> None:
        url = self._models.url(name, version)
        body, content_type = await asyncio.to_thread(self._models.store.sample, name, version, url, number)
        self._send(request, 200, body, content_type, ())

    def _archives(self, request: Request, read: Callable[..., object], *file: str) -> None:
        folder = self._models.store.folder
        if folder is None:
            message = f"{documents.ENGINE} does not report its archives. With --model-store this console shows them."
            raise ApiError(404, "ResourceNotFoundException", message)
        self._start(request, self._in_thread(request, read, folder, *file, self._in_use()))

    def _in_use(self) -> archives.Registered:
        in_use: dict[str, list[dict[str, str]]] = {}
        for name, model in self._models.snapshot.models.items():
            for state in model.versions:
                in_use.setdefault(Path(state.model.url).name, []).append(
                    {"model": name, "version": state.model.version}
                )
        return in_use
