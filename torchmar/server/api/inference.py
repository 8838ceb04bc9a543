"""The inference API over HTTP: TorchServe's routes, KServe's v1 and v2, and SageMaker's."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from torchmar.server.api import bodies, inference_openapi, tensors
from torchmar.server.api.open_inference import OpenInference, not_found
from torchmar.server.api_error import ApiError, not_allowed
from torchmar.server.config.settings import Settings
from torchmar.server.http import Request, compression
from torchmar.server.kserve_errors import is_kserve, with_error
from torchmar.server.models.health import health
from torchmar.server.models.registry import Registry, Version
from torchmar.server.models.startup import StillLoading
from torchmar.server.request_ids import HEADER, request_ids
from torchmar.server.telemetry import logs
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.tokens import Tokens
from torchmar.server.workers.jobs import Job, Part, Reply

_JSON = "application/json"
_BINARY = "inference-header-content-length"  # bytes of JSON before tensors in binary, of the v2 protocol
# TorchServe runs a model for any; these its clients may use.
_METHODS = ("POST", "GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")
# Targets may differ without end, in their queries alone.
_REMEMBERED = 1024
_LARGE = 1 << 16  # bytes that are compressed in a thread
_PREDICT, _EXPLAIN = {"explain": "False"}, {"explain": "True"}
_V1_VERBS = {"predict": _PREDICT, "explain": _EXPLAIN}
_V2_VERBS = {"infer": _PREDICT, "explain": _EXPLAIN}


# Their answers tell of the server's health and of nothing else.
_HEALTH = (["ping"], ["v2", "health", "live"], ["v2", "health", "ready"])


class _Asked(NamedTuple):
    """What the target of a request to a model says.

    Attributes:
        model: its name; None: the query, the form or the registry has it.
        version: None is the default one.
        headers: what the handler sees besides those of the client.
        query: whether parameters are a part of the handler's row.
        tensors: whether it is of the Open Inference Protocol: tensors may be bytes, and the answer is compressed for
            clients that accept it.
        kserve: whether the path is of KServe's protocols, whose bodies are JSON whatever type they are sent as.
    """

    model: str | None
    version: str | None
    headers: Mapping[str, str]
    query: bool = False
    tensors: bool = False
    kserve: bool = False


class Inference:
    """The app of the API.

    Args:
        registry: the models.
        tokens: who may ask.
        settings: the server's configuration.
        metrics: where requests are counted.
    """

    def __init__(self, registry: Registry, tokens: Tokens, settings: Settings, metrics: Metrics) -> None:
        self._registry, self._tokens, self._metrics = registry, tokens, metrics
        self._most, self._health_token = settings.max_response_size, settings.health_token
        self._asked: dict[bytes, _Asked] = {}
        self._ids = request_ids()
        self._open_inference = OpenInference(registry, metrics)

    def __call__(self, request: Request) -> None:
        """Answer a request, now or when a worker has."""
        request_id = next(self._ids)
        try:
            if request.method not in _METHODS:
                # TRACE, say, which is meant to run nothing (RFC 9110, 9.3.8).
                raise not_allowed(*_METHODS)
            asked = self._asked.get(request.target)
            if asked is None:
                self._route(request, request_id)
            else:
                self._check(request)
                self._ask(request, request_id, asked)
        except StillLoading as loading:
            loading.retry(request, self, partial(self._refuse, request, request_id))
        except ApiError as refusal:
            self._refuse(request, request_id, refusal)

    def _refuse(self, request: Request, request_id: str, refusal: ApiError) -> None:
        self._metrics.answered(refusal.status)
        request.respond_error(refusal, ((HEADER, request_id),))

    def _check(self, request: Request) -> None:
        self._tokens.check(request.header("authorization"), "inference")

    def _check_health(self, request: Request) -> None:
        """Let probes pass without a token unless the configuration wants one: kubelets and balancers have none."""
        if self._health_token:
            self._check(request)

    # What the server answers by itself.

    def _route(self, request: Request, request_id: str) -> None:
        """Answer a request whose target is not known yet."""
        segments = request.path.rstrip("/").split("/")[1:]
        if request.path == "/" and request.method in ("GET", "HEAD"):
            self._check_health(request)
            self._tell(request, request_id, 200, {"status": "alive"})  # KServe's liveness
            return
        if not segments and (request.method != "OPTIONS" or request.path == "*"):
            raise not_allowed("GET", "HEAD", "OPTIONS")
        if not segments or segments == ["api-description"]:
            # Whoever wants to know how to ask may have no token yet.
            self._tell(
                request,
                request_id,
                200,
                inference_openapi.describe(tokens=self._tokens.enabled, health_token=self._health_token),
            )
            return
        if segments in _HEALTH:
            self._check_health(request)
        else:
            self._check(request)
        if (asked := _asked(segments)) is not None:
            self._ask(request, request_id, asked)
            # Only what is there is remembered: a scan for what is not has nothing to drive out.
            if len(self._asked) >= _REMEMBERED:
                self._asked.clear()
            self._asked[request.target] = asked
            return
        match segments:
            case ["ping", *_]:
                status = health(self._registry)
                self._tell(request, request_id, 500 if status == "Unhealthy" else 200, {"status": status})
            case ["v1", "models"]:
                _only_read(request)
                self._tell(request, request_id, 200, {"models": list(self._registry.models)})
            case ["v1", "models", name] if ":" not in name:
                self._tell_ready(request, request_id, name, None)
            case ["v2", *rest]:
                self._tell(request, request_id, *self._open_inference.answer(request, rest))
            case _:
                raise not_found()

    def _tell_ready(self, request: Request, request_id: str, name: str, version: str | None) -> None:
        _only_read(request)
        try:
            answers = self._registry.find(name, version).pool.ready > 0
        except StillLoading:
            answers = False
        self._tell(request, request_id, 200 if answers else 503, {"name": name, "ready": answers})

    def _tell(self, request: Request, request_id: str, status: int, document: Any) -> None:
        self._metrics.answered(status)
        body = json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        request.respond(status, body, _JSON, ((HEADER, request_id),))

    # What workers answer.

    def _ask(self, request: Request, request_id: str, asked: _Asked) -> None:
        """Hand a request to the workers of a version.

        Raises:
            ApiError: there is no such version, or the body is no form though it says so.
        """
        inputs: list[Part] | None = None
        name = asked.model
        if name is None:
            inputs = self._inputs(request, asked)
            name = self._named(inputs)
        found = self._registry.find(name, asked.version)
        if request.method == "OPTIONS":
            self._tell(request, request_id, 200, inference_openapi.describe_model(name, tokens=self._tokens.enabled))
            return
        if inputs is None:
            inputs = self._inputs(request, asked)
        answer = _Answer(request, request_id, found, self._metrics, self._most)
        if asked.tensors:
            answer.encoding = compression.accepted(request.header("accept-encoding"))
        headers = self._headers(request, asked)
        if asked.tensors and found.pool.description.get("binary") is False:
            inputs, headers = _in_json(inputs, headers)
        job = Job(request_id, headers, inputs, answer.take, found.deadline())
        request.on_disconnect = partial(setattr, job, "cancelled", True)
        try:
            found.pool.submit(job)
        except ApiError as refusal:
            if asked.version is not None:
                # The odd quotation mark is TorchServe's.
                named = refusal.message.replace(f'"{name}"', f'"{name}" Version {asked.version}"', 1)
                refusal = ApiError(refusal.status, refusal.type, named, refusal.headers)
            answer.take(Reply.of(refusal))

    def _inputs(self, request: Request, asked: _Asked) -> list[Part]:
        if _is_json_as_other(request, asked):
            return [Part("body", _JSON, request.body)]
        inputs = bodies.inputs(request.body, request.header("content-type"))
        if asked.query:
            return [Part(name, "", value.encode("utf-8", "replace")) for name, value in request.query] + inputs
        return inputs

    def _named(self, inputs: list[Part]) -> str:
        """Return which model is meant where the path has none: the parameter or field says, or there is one alone."""
        for name, _, content in inputs:
            if name == "model_name" and content:
                return content.decode("utf-8", "replace")
        if len(self._registry.models) == 1:
            return next(iter(self._registry.models))
        raise ApiError(400, "BadRequestException", "Parameter model_name is required.")

    def _headers(self, request: Request, asked: _Asked) -> dict[str, str]:
        """Return the headers that the handler sees."""
        if self._tokens.enabled:
            # The token is the server's business: a handler could ask other models with it, or log it.
            headers = {name: value for name, value in request.headers if name.lower() != "authorization"}
        else:
            headers = dict(request.headers)
        if "Content-Length" not in headers and not request.header("content-length"):
            # As TorchServe, which hands on what came in chunks as if it had come as a whole.
            headers = {name: value for name, value in headers.items() if name.lower() != "transfer-encoding"}
            headers["content-length"] = str(len(request.body))
        if _is_json_as_other(request, asked):
            # A handler that looks here must not take for a form what it gets as JSON.
            headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
            headers["Content-Type"] = _JSON
        headers.update(asked.headers)
        return headers


class _Answer:
    """The answer to one request, as a whole or in parts."""

    __slots__ = ("_begun", "_failed", "_found", "_id", "_metrics", "_most", "_request", "_since", "encoding")

    def __init__(self, request: Request, request_id: str, found: Version, metrics: Metrics, most: int) -> None:
        self._request, self._id, self._found, self._metrics, self._most = request, request_id, found, metrics, most
        self._begun = self._failed = False
        self._since = time.monotonic()
        self.encoding = ""  # of the body; empty: as it is

    def take(self, reply: Reply) -> None:
        """Send what a worker says."""
        if len(reply.body) > self._most:
            reply = self._too_large(reply)
        request = self._request
        if reply.status >= 400 and not reply.more and not self._begun and is_kserve(request.target):
            reply = reply._replace(body=with_error(reply.body), content_type=_JSON)
        if not reply.more:
            # The circle from the request to its job and back is opened, so that both are freed at once.
            request.on_disconnect = None
            seconds = time.monotonic() - self._since
            self._metrics.request(self._found.name, self._found.version, reply.status, seconds)
        if reply.more or self._begun or self._failed:
            self._take_part(reply)
        elif self.encoding and "content-encoding" not in map(str.lower, reply.headers):
            self._compress(reply)
        elif reply.headers:
            content_type, headers = self._head(reply)
            request.respond(reply.status, reply.body, content_type, headers)
        else:
            request.respond(reply.status, reply.body, reply.content_type, ((HEADER, self._id),))

    def _compress(self, reply: Reply) -> None:
        """Send an answer in the client's encoding; a large one when a thread has made it, so that no other waits."""
        if len(reply.body) < _LARGE:
            self._send_encoded(reply, compression.encode(reply.body, self.encoding))
            return
        loop = asyncio.get_running_loop()
        encoding = loop.run_in_executor(None, compression.encode, reply.body, self.encoding)
        encoding.add_done_callback(lambda done: self._send_encoded(reply, done.result()))

    def _send_encoded(self, reply: Reply, body: bytes) -> None:
        content_type, headers = self._head(reply)
        headers += [("content-encoding", self.encoding), ("vary", "accept-encoding")]
        self._request.respond(reply.status, body, content_type, headers)

    def _take_part(self, reply: Reply) -> None:
        request = self._request
        if self._failed:
            return
        if reply.message:
            self._failed = True
            if self._begun:
                # What is sent already says that all is well; a client must not take it for the whole.
                request.abort()
            else:
                request.respond(reply.status, reply.body, reply.content_type, ((HEADER, self._id),))
            return
        if not self._begun:
            self._begun = True
            content_type, headers = self._head(reply)
            request.start(reply.status, content_type, headers)
        request.send(reply.body)
        if not reply.more:
            request.end()

    def _head(self, reply: Reply) -> tuple[str, list[tuple[str, str]]]:
        """Return the content type and the headers, without what a handler cannot set."""
        content_type, headers = reply.content_type, [(HEADER, self._id)]
        for name, value in reply.headers.items():
            lower = name.lower()
            if lower == "content-type":
                # Of an error in KServe's protocols the server has written the body anew.
                content_type = content_type or value
            elif lower != HEADER:
                headers.append((name, value))
        return content_type, headers

    def _too_large(self, reply: Reply) -> Reply:
        found, size = self._found, len(reply.body)
        message = f"The answer has {size} bytes, more than max_response_size={self._most} allows."
        about = {"model": found.name, "version": found.version, "request_id": self._id}
        logs.SERVER.warning("%s %s, request %s: %s", found.name, found.version, self._id, message, extra=about)
        return Reply.of(ApiError(500, "InternalServerException", message), more=reply.more)


def _asked(segments: list[str]) -> _Asked | None:
    """Return what a path asks of a model; None if it does not."""
    match segments:
        case ["predictions" | "explanations" as what, name, *rest]:
            # What is behind the version is for the handler.
            headers = {"url_path": "/".join(rest[1:]), **(_EXPLAIN if what == "explanations" else _PREDICT)}
            return _Asked(name, rest[0] if rest else None, headers)
        case ["v1", "models", *names, last] if ":" in last:
            final, _, verb = last.rpartition(":")
            match [*names, final]:
                case [name] if verb in _V1_VERBS:
                    return _Asked(name, None, _V1_VERBS[verb], kserve=True)
                case [name, "versions", version] if verb in _V1_VERBS:
                    return _Asked(name, version, _V1_VERBS[verb], kserve=True)
        case ["v2", "models", name, verb] if verb in _V2_VERBS:
            return _Asked(name, None, _V2_VERBS[verb], tensors=True, kserve=True)
        case ["v2", "models", name, "versions", version, verb] if verb in _V2_VERBS:
            return _Asked(name, version, _V2_VERBS[verb], tensors=True, kserve=True)
        case ["invocations"]:
            return _Asked(None, None, {}, query=True)
        case ["models", name, "invoke"] | [name, "predict"]:
            return _Asked(name, None, {}, query=True)
        case [name, version, "predict"]:
            return _Asked(name, version, {}, query=True)
    return None


def _in_json(inputs: list[Part], headers: dict[str, str]) -> tuple[list[Part], dict[str, str]]:
    """Return a request with tensors as bytes for a handler that reads JSON only; any other as it is.

    Clients read an answer in JSON, too, where they have asked for bytes.

    Raises:
        ApiError: 400, it has no such tensors, or JSON cannot hold them.
    """
    lengths = [value for name, value in headers.items() if name.lower() == tensors.HEADER_LENGTH.lower()]
    if not lengths or len(inputs) != 1:
        return inputs, headers
    try:
        document, given = tensors.split(inputs[0].content, int(lengths[0]), "inputs")
        document["inputs"] = [tensors.in_json(one) for one in given]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ApiError(400, "BadRequestException", f"The tensors cannot be read: {error}.") from None
    left = {name: value for name, value in headers.items() if name.lower() != tensors.HEADER_LENGTH.lower()}
    return [Part("body", _JSON, json.dumps(document, ensure_ascii=False).encode())], left


def _is_json_as_other(request: Request, asked: _Asked) -> bool:
    """Return whether a request of KServe's protocols has JSON under another content type, which does not matter there.

    ``curl -d`` sends JSON with the content type of a form by default, and other clients send no type at all.
    """
    if not asked.kserve or request.header(_BINARY) or bodies.is_json_type(request.header("content-type")):
        return False
    return bodies.begins_as_json(request.body)


def _only_read(request: Request) -> None:
    if request.method not in ("GET", "HEAD"):
        raise not_allowed("GET", "HEAD")  # who forgot the verb must not take this for a prediction
