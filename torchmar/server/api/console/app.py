"""The routes below ``/console`` of the management API: the page, its sessions and its JSON API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from torchmar.server.api import parameters
from torchmar.server.api.console import archives, documents, files, form, openapi, trial
from torchmar.server.api.console.access import Access, check_origin
from torchmar.server.api.console.stream import Scope, Streams
from torchmar.server.api_error import ApiError, not_allowed
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config.settings import Settings
from torchmar.server.http import Request, compression
from torchmar.server.models.registry import Registry
from torchmar.server.models.sampling import Sampler
from torchmar.server.request_ids import HEADER, request_ids
from torchmar.server.sessions import Sessions
from torchmar.server.telemetry.events import Events
from torchmar.server.telemetry.history import History
from torchmar.server.telemetry.metrics import BATCH_SIZES, Metrics
from torchmar.server.telemetry.recent_logs import RecentLogs
from torchmar.server.tokens import Tokens

_JSON = "application/json"
_LARGE = 1 << 16  # bytes that are compressed in a thread
_MOST_LOGS = 2000

Manage = Callable[[Request, list[str]], None]


class Console:
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
        self._registry, self._tokens, self._settings, self._metrics = registry, tokens, settings, metrics
        self._events, self._recent_logs = events, recent_logs
        self._history = History()
        self._sampler = Sampler(registry, metrics, self._history)
        self._streams = Streams(registry, self._history, events, recent_logs)
        self._sampler.on_tick = self._streams.on_tick
        self._sessions = Sessions(tokens, settings.token_expiration_min * 60)
        self._access = Access(
            tokens, self._sessions, f"torchmar_console_{settings.management.port}", secure=settings.management.tls
        )
        self._ids = request_ids()
        self._tasks = BackgroundTasks()

    def start(self) -> None:
        """Begin to sample the load."""
        self._tasks.start(self._sampler.run())

    async def close(self) -> None:
        """End the streams of all pages, and the sampling."""
        self._streams.close()
        await self._tasks.close()

    def __call__(self, request: Request, segments: list[str], manage: Manage) -> None:
        """Answer a request.

        Args:
            request: a request.
            segments: those of its path behind ``/console``.
            manage: answers a request that was checked, by the segments of its path in the management API.

        Raises:
            ApiError: it is wrong.
        """
        match segments:
            case ["api", "v1"]:
                _allow(request, "GET", "HEAD")
                self._respond(request, openapi.description(self._settings.tokens))
            case ["api", "v1", *rest]:
                self._api(request, rest, manage)
            case _:
                _allow(request, "GET", "HEAD")
                self._start(request, files.respond(request, "/".join(segments)))

    def _api(self, request: Request, segments: list[str], manage: Manage) -> None:
        if segments in (["sign-in"], ["sign-out"], ["code"]):
            self._sign(request, segments[0])
            return
        if segments[:1] == ["management"]:
            self._access.check(request)
            manage(request, segments[1:])
            return
        match segments:
            case ["models", name, version, "predict" | "explain" as verb]:
                _allow(request, "POST")
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
                _allow(request, "POST")
                self._access.check(request)
                sent = parameters.query(request).get("file", "archive.mar")
                self._start(request, self._in_thread(request, archives.checked, request.content, sent))
                return
        right = self._access.check(request)
        _allow(request, "GET", "HEAD")
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
            case ["history"]:
                since = _seconds(query.get("since", ""))
                columns = self._history.columns(query.get("model", ""), query.get("version", ""), since)
                self._respond(request, {"batch_sizes": list(BATCH_SIZES), "columns": columns})
            case ["load"]:
                summaries = self._history.summaries(query.get("model", ""))
                versions = [{"model": name, "version": of, **load} for (name, of), load in summaries.items()]
                self._respond(request, {"versions": versions})
            case ["events"]:
                after = parameters.number(query, "after", 0, least=0)
                self._respond(request, {"events": documents.events(self._events.since(after))})
            case ["logs"]:
                limit = min(parameters.number(query, "limit", _MOST_LOGS, least=0), _MOST_LOGS)
                names = [query.get(key, "") for key in ("model", "version", "worker")]
                entries = self._recent_logs.entries(*names, limit=limit)
                self._respond(request, {"entries": documents.log_entries(entries)})
            case ["stream"]:
                scope = Scope(query.get("model", ""), query.get("version", ""), query.get("logs") == "true")
                headers = [*files.SECURITY_HEADERS, files.DATA_POLICY, (HEADER, next(self._ids))]
                self._streams.open(request, scope, lambda: self._access.check(request), headers)
                self._metrics.answered(200)
            case _:
                raise ApiError(404, "ResourceNotFoundException", "The console's API has no such path.")

    # Sessions.

    def _sign(self, request: Request, action: str) -> None:
        """Open or end a session, or return a code that opens one."""
        _allow(request, "POST")
        if not self._tokens.enabled:
            raise ApiError(409, "ConflictStatusException", "This server needs no token, and has no sessions.")
        if action == "code":
            # Only with a token: a session must not be able to make further ones.
            code = self._sessions.new_code(request.header("authorization"))
            self._respond(request, {"code": code})
            return
        check_origin(request)
        self._sessions.close(self._access.session(request))
        if action == "sign-out":
            self._respond(request, {"status": "Signed out"}, headers=[self._access.cookie("")])
            return
        document = _document(request)
        if isinstance(document.get("code"), str):
            session = self._sessions.open_with_code(document["code"])
        elif isinstance(document.get("token"), str):
            session = self._sessions.open_with_token(document["token"])
        else:
            raise ApiError(400, "BadRequestException", 'The body must be {"code": ...} or {"token": ...}.')
        right = self._sessions.right(session)
        self._respond(request, {"right": right}, headers=[self._access.cookie(session)])

    # Responses.

    async def _in_thread(self, request: Request, work: Callable[..., object], *arguments: object) -> None:
        """Respond with what a blocking function returns."""
        self._respond(request, await asyncio.to_thread(work, *arguments))

    async def _sample(self, request: Request, name: str, version: str, number: str) -> None:
        registered = self._registry.find(name, version)
        if not number.isascii() or not number.isdigit():
            raise ApiError(400, "BadRequestException", f"{number[:100]!r} is not the number of a sample.")
        body, content_type = await asyncio.to_thread(form.sample_body, registered, int(number[:9]))
        self._send(request, 200, body, content_type, ())

    def _start(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except ApiError as error:
                self._metrics.answered(error.status)
                request.respond_error(error, ((HEADER, next(self._ids)), *files.SECURITY_HEADERS))
            except Exception as error:
                request.fail(error)

        self._tasks.start(run())

    def _respond(self, request: Request, document: object, *, headers: Sequence[tuple[str, str]] = ()) -> None:
        body = json.dumps(document).encode()
        self._send(request, 200, body, _JSON, headers)

    def _send(
        self, request: Request, status: int, body: bytes, content_type: str, headers: Sequence[tuple[str, str]]
    ) -> None:
        self._metrics.answered(status)
        sent = [*headers, *files.SECURITY_HEADERS, files.DATA_POLICY]
        if not any(name == HEADER for name, _ in headers):
            sent.append((HEADER, next(self._ids)))
        encoding = compression.accepted(request.header("accept-encoding")) if content_type == _JSON else ""
        if encoding and len(body) > 1024:
            self._tasks.start(self._send_encoded(request, status, body, encoding, sent))
        else:
            request.respond(status, body, content_type, sent)

    async def _send_encoded(
        self, request: Request, status: int, body: bytes, encoding: str, headers: list[tuple[str, str]]
    ) -> None:
        if len(body) < _LARGE:
            encoded = compression.encode(body, encoding)
        else:
            encoded = await asyncio.to_thread(compression.encode, body, encoding)
        request.respond(status, encoded, _JSON, [*headers, ("Content-Encoding", encoding), ("Vary", "Accept-Encoding")])


def _document(request: Request) -> dict[str, Any]:
    try:
        document = json.loads(request.body)
    except (ValueError, RecursionError):
        document = None
    return document if isinstance(document, dict) else {}


def _seconds(text: str) -> float:
    try:
        return float(text) if text else 0.0
    except ValueError:
        raise ApiError(400, "BadRequestException", f"Parameter since is {text[:100]!r}, and must be a time.") from None


def _allow(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise not_allowed(*methods)
