"""The routes of the management API: TorchServe's paths, parameters, statuses and texts.

Calls that wait for an archive or for workers run in a task, so that other requests are answered meanwhile.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any

import yaml

from torchmar.server.api import descriptions, management_openapi, parameters, status_messages
from torchmar.server.api.bodies import is_json_type
from torchmar.server.api_error import ApiError, error_body, not_allowed
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config.settings import Settings
from torchmar.server.http import Request
from torchmar.server.models.registry import Registration, Registry, Version
from torchmar.server.models.startup import StillLoading
from torchmar.server.request_ids import HEADER, request_ids
from torchmar.server.telemetry import logs
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.tokens import Tokens
from torchmar.server.workers.jobs import Job, Reply

_JSON = "application/json"
# TorchServe's own defaults, which its clients may send for a parameter that is not set.
_UNSAID = {"batch_size": -1, "max_batch_delay": -100, "response_timeout": -1, "startup_timeout": -1}


class Management:
    """The app of the management API.

    Args:
        registry: the models.
        tokens: who may ask.
        settings: the server's configuration.
        metrics: where answers are counted.
    """

    def __init__(self, registry: Registry, tokens: Tokens, settings: Settings, metrics: Metrics) -> None:
        self._registry, self._tokens, self._settings, self._metrics = registry, tokens, settings, metrics
        self._tasks = BackgroundTasks()
        self._ids = request_ids()

    def __call__(self, request: Request) -> None:
        """Answer a request, now or later."""
        try:
            self._route(request)
        except StillLoading as loading:
            loading.retry(request, self, partial(self._refuse, request))
        except ApiError as refusal:
            self._refuse(request, refusal)

    def _route(self, request: Request) -> None:
        parts = request.path.split("/")
        while len(parts) > 1 and not parts[-1]:
            parts.pop()
        # What the API is like may be asked without a token.
        if len(parts) == 1:
            _allow(request, "OPTIONS")
            if parts != [""]:  # OPTIONS *
                raise not_allowed("OPTIONS")
            self._answer(request, management_openapi.management(self._settings.tokens))
            return
        if parts[1] == "api-description":
            _allow(request, "GET", "HEAD", "OPTIONS")
            self._answer(request, management_openapi.management(self._settings.tokens))
            return
        authorization = request.header("authorization")
        if parts[1] == "token" and self._settings.tokens:
            self._renew(request, authorization)
            return
        self._tokens.check(authorization, "management")
        if parts[1] == "models" and len(parts) <= 5:
            self._models(request, parts[2:])
        elif parts[1:3] == ["v1", "models"] and len(parts) == 4:
            _allow(request, "GET")
            name = parts[3].partition(":")[0]
            self._answer(request, {"name": name, "ready": self._registry.find(name).pool.ready > 0})
        else:
            raise _not_found()

    def _models(self, request: Request, names: list[str]) -> None:
        method = request.method
        if not names:
            _allow(request, "GET", "POST")
            if method == "GET":
                self._list(request)
            else:
                self._begin(request, self._register(request))
            return
        name, version = names[0], names[1] if len(names) > 1 else None
        if len(names) == 3:
            if names[2] != "set-default":
                raise _not_found()
            _allow(request, "PUT", "OPTIONS")
            if method == "PUT":
                self._registry.set_default(name, names[1])
                self._say(request, status_messages.made_default(name, names[1]))
                return
        if method == "OPTIONS":
            self._registry.find(name, version)
            self._answer(request, management_openapi.of_model(name, self._settings.tokens))
        elif method == "GET":
            self._describe(request, name, version)
        elif method == "PUT":
            self._begin(request, self._scale(request, name, version))
        else:
            _allow(request, "GET", "PUT", "DELETE", "OPTIONS")
            self._begin(request, self._unregister(request, name, version))

    def _renew(self, request: Request, authorization: str) -> None:
        """Write a new token into the key file; the answer does not have it."""
        self._tokens.check(authorization, "key")
        self._tokens.renew(_parameters(request).get("type", ""))
        self._respond(request, 200, b"\n")

    def _list(self, request: Request) -> None:
        asked = _parameters(request)
        parameters.check(asked, parameters.LIST, "GET /models")
        limit = parameters.number(asked, "limit", descriptions.PAGE, least=0)
        token = parameters.number(asked, "next_page_token", 0, least=0)
        self._answer(request, descriptions.page(self._registry.models.values(), limit, token))

    async def _register(self, request: Request) -> None:
        if not self._settings.model_api:
            raise not_allowed("GET")
        asked = _registration(request)
        found = await self._registry.register(asked)
        self._say(request, status_messages.registered(found, synchronous=asked.synchronous))

    async def _scale(self, request: Request, name: str, version: str | None) -> None:
        asked = _parameters(request)
        parameters.check(asked, parameters.SCALE, f"PUT /models/{name}")
        low = parameters.number(asked, "min_worker", 1, least=0)
        high = parameters.number(asked, "max_worker", low, least=0)
        version = asked.get("model_version") if version is None else version
        wait = parameters.flag(asked, "synchronous", default=False)
        await self._registry.scale(name, version, low, high, synchronous=wait)
        self._say(request, status_messages.scaled(name, version, low, synchronous=wait))

    async def _unregister(self, request: Request, name: str, version: str | None) -> None:
        if not self._settings.model_api:
            raise not_allowed("GET", "PUT", "OPTIONS")
        await self._registry.unregister(name, version)
        self._say(request, status_messages.unregistered(name))

    def _describe(self, request: Request, name: str, version: str | None) -> None:
        if version == "all":
            self._registry.find(name)
            described = list(self._registry.models[name].versions.values())
        else:
            described = [self._registry.find(name, version)]
            asked = _parameters(request)
            parameters.check(asked, parameters.DESCRIBE, f"GET /models/{name}")
            if parameters.flag(asked, "customized", default=False):
                self._ask_handler(request, described[0])
                return
        if any(one.serving.device_type == "gpu" for one in described):
            self._begin(request, self._describe_with_gpus(request, described))
        else:
            self._answer(request, [descriptions.version(one) for one in described])

    async def _describe_with_gpus(self, request: Request, described: list[Version]) -> None:
        usage = await asyncio.to_thread(descriptions.gpu_usage)
        self._answer(request, [descriptions.version(one, usage) for one in described])

    def _ask_handler(self, request: Request, described: Version) -> None:
        """Answer with what the handler says of itself as ``customizedMetadata``."""

        def done(reply: Reply) -> None:
            document.append(reply.body)
            if reply.more:
                return
            if reply.status != 200:
                body = reply.body
                if reply.message:
                    body = error_body(reply.status, "InternalServerException", reply.message)
                self._respond(request, reply.status, body, reply.content_type or _JSON)
            else:
                metadata = _object(b"".join(document))
                self._answer(request, [{**descriptions.version(described), "customizedMetadata": metadata}])

        document: list[bytes] = []
        # The token is for the server; a handler has no use for it.
        headers = {key: value for key, value in request.headers if key.lower() != "authorization"}
        job = Job(next(self._ids), {**headers, "describe": "True"}, (), done, described.deadline())

        def gone() -> None:
            job.cancelled = True

        try:
            described.pool.submit(job)
        except ApiError as refusal:
            message = (
                f'Model "{described.name}" has no worker to serve describe request. '
                "Please use scale workers API to add workers."
            )
            raise ApiError(refusal.status, refusal.type, message, refusal.headers) from None
        request.on_disconnect = gone

    def _begin(self, request: Request, answering: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(self._answered(request, answering))

    async def _answered(self, request: Request, answering: Coroutine[Any, Any, None]) -> None:
        try:
            await answering
        except StillLoading as loading:
            loading.retry(request, self, partial(self._refuse, request))
        except ApiError as refusal:
            self._refuse(request, refusal)
        except Exception:
            logs.SERVER.exception("%s %s failed", request.method, request.path)
            message = "the server has failed; its log says how"
            self._refuse(request, ApiError(500, "InternalServerException", message))

    def _say(self, request: Request, text: str) -> None:
        self._answer(request, {"status": text}, 202 if text == status_messages.STARTED else 200)

    def _answer(self, request: Request, document: object, status: int = 200) -> None:
        body = json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self._respond(request, status, body)

    def _refuse(self, request: Request, refusal: ApiError) -> None:
        self._metrics.answered(refusal.status)
        request.respond_error(refusal, ((HEADER, next(self._ids)),))

    def _respond(self, request: Request, status: int, body: bytes, content_type: str = _JSON) -> None:
        self._metrics.answered(status)
        request.respond(status, body, content_type, ((HEADER, next(self._ids)),))


def _registration(request: Request) -> Registration:
    """Return what a request wants registered: its query, and its JSON body, which goes before the query.

    Raises:
        ApiError: 400; there is no URL, or the body is no JSON object, or a number in it is none.
    """
    body = _body(request.body) if is_json_type(request.header("content-type")) else {}
    asked = {**_parameters(request), **body}
    parameters.check(asked, management_openapi.REGISTRATION, "POST /models")
    if "url" not in asked:
        raise ApiError(400, "BadRequestException", "Parameter url is required.")

    def number(name: str) -> int | None:
        unsaid = _UNSAID.get(name)
        value: int | None = parameters.number(asked, name, unsaid)
        return None if value == unsaid else value

    return Registration(
        asked["url"],
        model_name=asked.get("model_name", ""),
        handler=asked.get("handler", ""),
        runtime=asked.get("runtime"),
        batch_size=number("batch_size"),
        max_batch_delay=number("max_batch_delay"),
        response_timeout=number("response_timeout"),
        startup_timeout=number("startup_timeout"),
        initial_workers=number("initial_workers"),
        synchronous=parameters.flag(asked, "synchronous", default=True),
        ignored_checks=tuple(filter(None, asked.get("torchmar_ignore_checks", "").split(","))),
    )


def _body(body: bytes) -> dict[str, str]:
    """Return the members of a JSON object as the text that a query would have; null is as if it were not there."""
    try:
        document = json.loads(body or b"null")
    except (ValueError, RecursionError) as error:
        try:
            document = _lenient(body)
        except (ValueError, RecursionError, yaml.YAMLError):
            raise ApiError(400, "BadRequestException", f"The body is not JSON: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ApiError(400, "BadRequestException", "The body is no JSON object.")
    content: dict[str, str] = {}
    for key, value in document.items():
        if isinstance(value, dict | list):
            raise ApiError(400, "BadRequestException", f"Parameter {key} is no text and no number.")
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None:
            content[key] = str(value)
    return content


def _lenient(body: bytes) -> Any:
    """Return a body that only TorchServe's parser (Gson) takes for JSON: with apostrophes, or names without quotes.

    Raises:
        ValueError, yaml.YAMLError: it is not such an object.
    """
    text = body.decode().strip()
    if not text.startswith("{"):
        raise ValueError("not an object")
    return yaml.load(text, yaml.BaseLoader)  # YAML's flow style; every value is a text


def _parameters(request: Request) -> Mapping[str, str]:
    """Return the query; of a parameter that is there several times, the first."""
    return dict(reversed(request.query))


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _allow(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise not_allowed(*methods)


def _not_found() -> ApiError:
    message = "Requested resource is not found, please refer to API document."
    return ApiError(404, "ResourceNotFoundException", message)
