"""The routes of the management API: TorchServe's paths, parameters, statuses and texts.

Calls that wait for an archive or for workers run in a task, so that other requests are answered in the meantime.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from torchmar.server.api import descriptions, management_openapi, parameters, status_messages
from torchmar.server.api.console.app import Console
from torchmar.server.api.registration import registration
from torchmar.server.api_error import ApiError, error_body, not_allowed
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config import routes as configured_routes
from torchmar.server.config.routes import Route
from torchmar.server.config.settings import Settings
from torchmar.server.http import Request
from torchmar.server.models.download import DownloadProgress
from torchmar.server.models.registry import Registry, Version
from torchmar.server.models.startup import StillLoading
from torchmar.server.request_ids import HEADER, request_ids
from torchmar.server.telemetry import logs
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.tokens import Tokens
from torchmar.server.workers.jobs import Job, Reply

_JSON = "application/json"


class Management:
    """The app of the management API.

    Args:
        registry: the models.
        tokens: the tokens that requests need.
        settings: the server's configuration.
        metrics: counts the responses.
        console: answers requests below ``/console``; None: there is no console.
        forward: forwards a request to another server, and returns whether that server answers it.
    """

    def __init__(
        self,
        registry: Registry,
        tokens: Tokens,
        settings: Settings,
        metrics: Metrics,
        console: Console | None = None,
        forward: Callable[[Request], bool] = lambda request: False,
    ) -> None:
        self._registry, self._tokens, self._settings, self._metrics = registry, tokens, settings, metrics
        self._console, self._forward = console, forward
        self._tasks = BackgroundTasks()
        self._ids = request_ids()

    def __call__(self, request: Request) -> None:
        """Answer a request, now or later."""
        try:
            self._route(request)
        except StillLoading as loading:
            loading.retry(request, self, partial(self._respond_error, request))
        except ApiError as error:
            self._respond_error(request, error)

    def _route(self, request: Request) -> None:
        segments = request.path.split("/")
        while len(segments) > 1 and not segments[-1]:
            segments.pop()
        # The description of the API needs no token.
        if len(segments) == 1:
            _allow(request, "OPTIONS")
            if segments != [""]:  # OPTIONS *
                raise not_allowed("OPTIONS")
            self._respond_document(request, management_openapi.management(self._settings.tokens))
            return
        if segments[1] == "api-description":
            _allow(request, "GET", "HEAD", "OPTIONS")
            self._respond_document(request, management_openapi.management(self._settings.tokens))
            return
        if segments[1] == "console" and self._console:
            self._console(request, segments[2:], self.manage)
            return
        authorization = request.header("authorization")
        if segments[1] == "token" and self._settings.tokens:
            self._renew(request, authorization)
            return
        self._tokens.check(authorization, "read" if request.method in ("GET", "HEAD", "OPTIONS") else "management")
        self.manage(request, segments[1:])

    def manage(self, request: Request, segments: list[str]) -> None:
        """Answer a request after its token or session was checked, by the segments of its path."""
        if self._forward(request):
            return
        if segments[:1] == ["models"] and len(segments) <= 4:
            self._models(request, segments[1:])
        elif segments == ["downloads"]:
            _allow(request, "GET")
            running = [_download(progress) for progress in self._registry.downloads]
            self._respond_document(request, {"downloads": running})
        elif segments[:1] == ["routes"]:
            self._routes(request, segments[1:])
        elif segments[:2] == ["v1", "models"] and len(segments) == 3:
            _allow(request, "GET")
            name = segments[2].partition(":")[0]
            self._respond_document(request, {"name": name, "ready": self._registry.find(name).pool.ready > 0})
        else:
            raise _not_found()

    def _models(self, request: Request, names: list[str]) -> None:
        method = request.method
        if not names:
            _allow(request, "GET", "POST")
            if method == "GET":
                self._list(request)
            else:
                self._start(request, self._register(request))
            return
        name, version = names[0], names[1] if len(names) > 1 else None
        if version == "labels" and names[2:] != ["set-default"]:
            self._labels(request, name, names[2] if len(names) == 3 else "")
            return
        if len(names) == 3:
            if names[2] != "set-default":
                raise _not_found()
            _allow(request, "PUT", "OPTIONS")
            if method == "PUT":
                self._registry.set_default(name, names[1])
                self._respond_status(request, status_messages.made_default(name, names[1]))
                return
        if method == "OPTIONS":
            self._registry.find(name, version)
            self._respond_document(request, management_openapi.of_model(name, self._settings.tokens))
        elif method == "GET":
            self._describe(request, name, version)
        elif method == "PUT":
            self._start(request, self._scale(request, name, version))
        else:
            _allow(request, "GET", "PUT", "DELETE", "OPTIONS")
            self._start(request, self._unregister(request, name, version))

    def _labels(self, request: Request, name: str, label: str) -> None:
        """Respond with the labels of a model, or set or remove ``label``."""
        if not label:
            _allow(request, "GET")
            self._registry.find(name)
            self._respond_document(request, {"labels": self._registry.models[name].labels})
            return
        _allow(request, "PUT", "DELETE")
        if request.method == "DELETE":
            self._registry.remove_label(name, label)
            self._respond_status(request, status_messages.label_removed(name, label))
            return
        query = parameters.query(request)
        parameters.check(query, parameters.LABEL, f"PUT /models/{name}/labels/{label}")
        version = query.get("version", "")
        if not version:
            raise ApiError(400, "BadRequestException", "Parameter version is required.")
        self._registry.set_label(name, label, version)
        self._respond_status(request, status_messages.labelled(name, label, version))

    def _routes(self, request: Request, segments: list[str]) -> None:
        """Respond with all routes; if ``segments`` contain a path, respond with its route, set it or remove it."""
        routes = self._registry.routes
        if not segments:
            _allow(request, "GET")
            documents = {path: configured_routes.document(route) for path, route in routes.by_path.items()}
            self._respond_document(request, {"routes": documents})
            return
        _allow(request, "GET", "PUT", "DELETE")
        path = "/" + "/".join(segments)
        if request.method == "GET":
            self._respond_document(request, configured_routes.document(routes.get(path)))
        elif request.method == "DELETE":
            routes.remove(path)
            self._respond_status(request, status_messages.route_removed(path))
        else:
            query = parameters.query(request)
            if unknown := sorted(query.keys() - parameters.ROUTE):
                # If it were ignored, the route would lead to another version.
                message = f"Unknown parameter {unknown[0]}; there are {' and '.join(parameters.ROUTE)}."
                raise ApiError(400, "BadRequestException", message)
            if not query.get("model"):
                raise ApiError(400, "BadRequestException", "Parameter model is required.")
            route = Route(query["model"], query.get("version") or None)
            self._registry.find(route.model, route.version)
            routes.set(path, route)
            self._respond_status(request, status_messages.routed(path, route))

    def _renew(self, request: Request, authorization: str) -> None:
        """Write a new token into the key file; the response does not contain it."""
        self._tokens.check(authorization, "key")
        self._tokens.renew(parameters.query(request).get("type", ""))
        self._respond(request, 200, b"\n")

    def _list(self, request: Request) -> None:
        query = parameters.query(request)
        parameters.check(query, parameters.LIST, "GET /models")
        limit = parameters.number(query, "limit", descriptions.PAGE, least=0)
        token = parameters.number(query, "next_page_token", 0, least=0)
        self._respond_document(request, descriptions.page(self._registry.models.values(), limit, token))

    async def _register(self, request: Request) -> None:
        if not self._settings.model_api:
            raise not_allowed("GET")
        parsed = registration(request)
        version = await self._registry.register(parsed)
        self._respond_status(request, status_messages.registered(version, synchronous=parsed.synchronous))

    async def _scale(self, request: Request, name: str, version: str | None) -> None:
        query = parameters.query(request)
        parameters.check(query, parameters.SCALE, f"PUT /models/{name}")
        min_workers = parameters.number(query, "min_worker", 1, least=0)
        max_workers = parameters.number(query, "max_worker", min_workers, least=0)
        version = query.get("model_version") if version is None else version
        synchronous = parameters.flag(query, "synchronous", default=False)
        await self._registry.scale(name, version, min_workers, max_workers, synchronous=synchronous)
        self._respond_status(request, status_messages.scaled(name, version, min_workers, synchronous=synchronous))

    async def _unregister(self, request: Request, name: str, version: str | None) -> None:
        if not self._settings.model_api:
            raise not_allowed("GET", "PUT", "OPTIONS")
        await self._registry.unregister(name, version)
        self._respond_status(request, status_messages.unregistered(name))

    def _describe(self, request: Request, name: str, version: str | None) -> None:
        if version == "all":
            self._registry.find(name)
            described = list(self._registry.models[name].versions.values())
        else:
            described = [self._registry.find(name, version)]
            query = parameters.query(request)
            parameters.check(query, parameters.DESCRIBE, f"GET /models/{name}")
            if parameters.flag(query, "customized", default=False):
                self._describe_by_handler(request, described[0])
                return
        if any(model.serving.device_type == "gpu" for model in described):
            self._start(request, self._describe_with_gpus(request, described))
        else:
            self._respond_document(request, [descriptions.version(model) for model in described])

    async def _describe_with_gpus(self, request: Request, described: list[Version]) -> None:
        usage = await asyncio.to_thread(descriptions.gpu_usage)
        self._respond_document(request, [descriptions.version(model, usage) for model in described])

    def _describe_by_handler(self, request: Request, described: Version) -> None:
        """Respond with the handler's description of itself as ``customizedMetadata``."""

        def on_reply(reply: Reply) -> None:
            parts.append(reply.body)
            if reply.more:
                return
            if reply.status != 200:
                body = reply.body
                if reply.message:
                    body = error_body(reply.status, "InternalServerException", reply.message)
                self._respond(request, reply.status, body, reply.content_type or _JSON)
            else:
                metadata = _object(b"".join(parts))
                self._respond_document(request, [{**descriptions.version(described), "customizedMetadata": metadata}])

        parts: list[bytes] = []
        # A handler does not need the token.
        headers = {key: value for key, value in request.headers if key.lower() != "authorization"}
        job = Job(next(self._ids), {**headers, "describe": "True"}, (), on_reply, described.deadline())
        try:
            described.pool.submit(job)
        except ApiError as error:
            message = (
                f'Model "{described.name}" has no worker to serve describe request. '
                "Please use scale workers API to add workers."
            )
            raise ApiError(error.status, error.type, message, error.headers) from None
        request.on_disconnect = partial(setattr, job, "cancelled", True)

    def _start(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(self._run(request, work))

    async def _run(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except StillLoading as loading:
            loading.retry(request, self, partial(self._respond_error, request))
        except ApiError as error:
            self._respond_error(request, error)
        except Exception:
            logs.SERVER.exception("%s %s failed", request.method, request.path)
            message = "The request failed; the server's log has the reason."
            self._respond_error(request, ApiError(500, "InternalServerException", message))

    def _respond_status(self, request: Request, text: str) -> None:
        self._respond_document(request, {"status": text}, 202 if text == status_messages.STARTED else 200)

    def _respond_document(self, request: Request, document: object, status: int = 200) -> None:
        body = json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self._respond(request, status, body)

    def _respond_error(self, request: Request, error: ApiError) -> None:
        self._metrics.answered(error.status)
        request.respond_error(error, ((HEADER, next(self._ids)),))

    def _respond(self, request: Request, status: int, body: bytes, content_type: str = _JSON) -> None:
        self._metrics.answered(status)
        request.respond(status, body, content_type, ((HEADER, next(self._ids)),))


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _download(progress: DownloadProgress) -> dict[str, Any]:
    size = {} if progress.size is None else {"size": progress.size}
    return {"url": progress.url, "received": progress.received, **size}


def _allow(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise not_allowed(*methods)


def _not_found() -> ApiError:
    message = "Requested resource is not found, please refer to API document."
    return ApiError(404, "ResourceNotFoundException", message)
