"""The inference API over HTTP: requests to models, and documents about the server."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

from torchmar.server.api import bodies, event_stream, inference_openapi, tensorflow_serving, tensors
from torchmar.server.api.model_response import ModelResponse
from torchmar.server.api.model_target import ModelTarget, model_target, route_target
from torchmar.server.api.open_inference import OpenInference, not_found
from torchmar.server.api.request_spans import HttpSpans
from torchmar.server.api_error import ApiError, not_allowed
from torchmar.server.config.settings import Settings
from torchmar.server.http import Request, compression
from torchmar.server.models.health import health, ready
from torchmar.server.models.registry import Registry, Version
from torchmar.server.models.startup import StillLoading
from torchmar.server.request_ids import HEADER, request_ids
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.telemetry.spans import JobSpans, RequestSpan
from torchmar.server.telemetry.tracing import Tracer
from torchmar.server.tokens import Tokens
from torchmar.server.workers.deadline_error import DeadlineError
from torchmar.server.workers.jobs import Job, Part

_JSON = "application/json"
_BINARY = "inference-header-content-length"  # header of the v2 protocol with the size of the JSON before binary tensors
_TIMEOUT = "x-request-timeout-ms"
_MAX_TIMEOUT_MS = 1e9  # eleven days
# TorchServe runs a model for every method; here clients may use these.
_METHODS = ("POST", "GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")
_CACHED_TARGETS = 1024  # a limit, because targets with different queries are innumerable
# Paths whose responses contain only the server's health.
_HEALTH = (["ping"], ["v2", "health", "live"], ["v2", "health", "ready"])


class Inference:
    """The app of the API.

    Args:
        registry: the models.
        tokens: the tokens that requests need.
        settings: the server's configuration.
        metrics: counts the requests.
        tracer: starts the spans of requests to models, including rejected ones; None: requests are not traced.
    """

    def __init__(
        self,
        registry: Registry,
        tokens: Tokens,
        settings: Settings,
        metrics: Metrics,
        tracer: Tracer | None = None,
    ) -> None:
        self._registry, self._tokens, self._metrics = registry, tokens, metrics
        self._spans = HttpSpans(tracer, "https" if settings.inference.tls else "http") if tracer else None
        self._max_response_size, self._health_token = settings.max_response_size, settings.health_token
        self._health_path = settings.health_path
        self._targets: dict[bytes, ModelTarget] = {}
        registry.routes.on_change.append(self._targets.clear)
        self._ids = request_ids()
        self._open_inference = OpenInference(registry, metrics)

    def __call__(self, request: Request) -> None:
        """Answer a request, now or when a worker has replied."""
        request_id = next(self._ids)
        try:
            if request.method not in _METHODS:
                # Such as TRACE, which must not run a model (RFC 9110, 9.3.8).
                raise not_allowed(*_METHODS)
            target = self._targets.get(request.target)
            if target is None:
                self._route(request, request_id)
            else:
                self._check_token(request)
                self._submit(request, request_id, target)
        except StillLoading as loading:
            loading.retry(request, self, partial(self._respond_error, request, request_id))
        except ApiError as error:
            self._respond_error(request, request_id, error)

    def on_head(self, request: Request) -> None:
        """Reject a request before its body arrives, if it would be rejected anyway.

        An overloaded server spends most of its time for a request on reading and dropping the body. Requests wait in
        order, so that a deadline that cannot be met now cannot be met after the body has arrived either. The queue,
        however, may have room by then; only a client that waits for 100 (Continue) gets the state at this moment.
        """
        target = self._targets.get(request.target)
        if target is None or target.model is None or request.method not in _METHODS or request.method == "OPTIONS":
            return
        try:
            version, kind, deadline = self._resolve(request, target, target.model)
        except ApiError:
            return  # the same error is the response when the body has arrived
        waits = bool(request.header("expect"))
        if deadline is None and not waits:
            return
        try:
            version.pool.admit(kind, deadline)
        except ApiError as error:
            if (waits or isinstance(error, DeadlineError)) and self._has_token(request):
                self._reject(request, next(self._ids), target, version, error)

    def _respond(self, request: Request, request_id: str, status: int, document: Any) -> None:
        self._metrics.answered(status)
        body = json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        request.respond(status, body, _JSON, ((HEADER, request_id),))

    def _respond_error(self, request: Request, request_id: str, error: ApiError) -> None:
        if self._spans is not None:
            self._spans.start(request, request_id)
        self._metrics.answered(error.status)
        request.respond_error(error, ((HEADER, request_id),))

    def _check_token(self, request: Request) -> None:
        if self._tokens.enabled:
            self._tokens.check(request.header("authorization"), "inference")

    def _has_token(self, request: Request) -> bool:
        try:
            self._check_token(request)
        except ApiError:
            return False
        return True

    def _check_health_token(self, request: Request) -> None:
        """Accept probes without a token unless the configuration requires one, which kubelets do not have."""
        if self._health_token:
            self._check_token(request)

    # Documents of the server.

    def _route(self, request: Request, request_id: str) -> None:
        """Answer a request whose target is not cached."""
        if request.path == self._health_path and request.method in ("GET", "HEAD"):
            is_ready = ready(self._registry)
            self._respond(request, request_id, 200 if is_ready else 503, {"ready": is_ready})
            return
        segments = request.path.rstrip("/").split("/")[1:]
        if request.path == "/" and request.method in ("GET", "HEAD"):
            self._check_health_token(request)
            self._respond(request, request_id, 200, {"status": "alive"})  # the liveness of KServe
            return
        if not segments and (request.method != "OPTIONS" or request.path == "*"):
            raise not_allowed("GET", "HEAD", "OPTIONS")
        if not segments or segments == ["api-description"]:
            # A client that reads the API's description may not have a token yet.
            document = inference_openapi.describe(
                tokens=self._tokens.enabled, health_token=self._health_token, routes=self._registry.routes.by_path
            )
            self._respond(request, request_id, 200, document)
            return
        if segments in _HEALTH:
            self._check_health_token(request)
        else:
            self._check_token(request)
        # A route takes precedence over /NAME/predict, the only path of the API whose first segment can be anything.
        path = "/" + "/".join(segments)
        route = self._registry.routes.find(path)
        if (target := route_target(path, route) if route else model_target(segments)) is not None:
            self._submit(request, request_id, target)
            # Only existing models are cached, so that a scan for others does not evict them.
            if len(self._targets) >= _CACHED_TARGETS:
                self._targets.clear()
            self._targets[request.target] = target
            return
        self._answer_about_server(request, request_id, segments)

    def _answer_about_server(self, request: Request, request_id: str, segments: list[str]) -> None:
        """Answer a request that is not for a worker: for health, states of models, or metadata.

        Raises:
            ApiError: 404, there is no such path; or as the answer demands.
        """
        match segments:
            case ["ping", *_]:
                status = health(self._registry)
                self._respond(request, request_id, 500 if status == "Unhealthy" else 200, {"status": status})
            case ["v1", "models"]:
                _allow_reading(request)
                self._respond(request, request_id, 200, {"models": list(self._registry.models)})
            case ["v1", "models", name] if ":" not in name:
                self._respond_ready(request, request_id, name)
            case ["v1", "models", name, *rest] if ":" not in segments[-1]:
                document = tensorflow_serving.document(self._registry, name, rest)
                _allow_reading(request)
                self._respond(request, request_id, 200, document)
            case ["v2", *rest]:
                self._respond(request, request_id, *self._open_inference.answer(request, rest))
            case _:
                raise not_found()

    def _respond_ready(self, request: Request, request_id: str, name: str) -> None:
        """Respond with a model's readiness as in KServe, and the states of its versions as in TensorFlow Serving."""
        _allow_reading(request)
        try:
            is_ready = self._registry.find(name).pool.ready > 0
        except StillLoading:
            is_ready = False
        statuses = tensorflow_serving.status_document(tensorflow_serving.statuses(self._registry, name))
        self._respond(request, request_id, 200 if is_ready else 503, {"name": name, "ready": is_ready, **statuses})

    # Requests to models.

    def _submit(self, request: Request, request_id: str, target: ModelTarget) -> None:
        """Queue a request for the workers of a version.

        Raises:
            ApiError: the version does not exist, or the body is not of the form in its content type.
        """
        span = None if self._spans is None else self._spans.start(request, request_id, target.route)
        inputs: list[Part] | None = None
        name = target.model
        if name is None:
            inputs = self._inputs(request, target)
            name = self._model_name(inputs)
        version, kind, deadline = self._resolve(request, target, name)
        if request.method == "OPTIONS":
            document = inference_openapi.describe_model(
                name, tokens=self._tokens.enabled, routes=self._registry.routes.by_path
            )
            self._respond(request, request_id, 200, document)
            return
        try:
            version.pool.admit(kind, deadline)  # first, because a rejection makes the rest unnecessary
        except ApiError as error:
            self._reject(request, request_id, target, version, error)
            return
        if inputs is None:
            inputs = self._inputs(request, target)
        response = ModelResponse(request, request_id, version, self._metrics, self._max_response_size)
        if target.verb:
            examples = tensorflow_serving.examples_of(request.body, version.pool.description.get("inputs", ()))
            inputs = [Part("body", _JSON, examples)]
            response.convert = partial(tensorflow_serving.results_document, target.verb)
        if (accept := request.header("accept")) and "event-stream" in accept.lower():
            response.events, response.only_events = event_stream.accepted(accept)
        if target.tensors:
            response.encoding = compression.accepted(request.header("accept-encoding"))
        headers = self._headers(request, target)
        if target.tensors and version.pool.description.get("binary") is False:
            inputs, headers = _in_json(inputs, headers)
        job = Job(request_id, headers, inputs, response.on_reply, deadline)
        if span is not None:
            _name_version(span, version)
            job.spans = JobSpans(span)
        request.on_disconnect = partial(setattr, job, "cancelled", True)
        version.pool.enqueue(job)

    def _resolve(self, request: Request, target: ModelTarget, name: str) -> tuple[Version, str, float | None]:
        """Return the version of a request, the kind of its batch, and its deadline.

        Raises:
            ApiError: 404, the version does not exist; 400, the header with the timeout is wrong.
        """
        if target.tensorflow:
            version = tensorflow_serving.find(self._registry, name, target.version, target.label)
        else:
            version = self._registry.find(name, target.version)
        deadline = version.deadline()
        if timeout := request.header(_TIMEOUT):
            deadline = _earlier(deadline, request.received, timeout)
        explain = request.header("explain") if target.query else target.headers["explain"]
        return version, "explain" if explain == "True" else "", deadline

    def _reject(
        self, request: Request, request_id: str, target: ModelTarget, version: Version, error: ApiError
    ) -> None:
        """Respond that a version cannot run a request now."""
        if self._spans is not None and (span := self._spans.start(request, request_id, target.route)) is not None:
            _name_version(span, version)
        if target.version is not None:
            # The odd quotation mark is TorchServe's.
            name = version.name
            message = error.message.replace(f'"{name}"', f'"{name}" Version {target.version}"', 1)
            error = ApiError(error.status, error.type, message, error.headers)
        self._metrics.request(version.name, version.version, error.status)
        request.respond_error(error, ((HEADER, request_id),))

    def _inputs(self, request: Request, target: ModelTarget) -> list[Part]:
        if target.kserve and _is_mislabelled_json(request):
            return [Part("body", _JSON, request.content)]
        inputs = bodies.inputs(request.content, request.header("content-type"))
        if target.query:
            return [Part(name, "", value.encode("utf-8", "replace")) for name, value in request.query] + inputs
        return inputs

    def _model_name(self, inputs: list[Part]) -> str:
        """Return the model of a path without a name: that in the parameter or field, or the only one."""
        for name, _, content in inputs:
            if name == "model_name" and content:
                return bytes(content).decode("utf-8", "replace")
        pending = self._registry.startup.pending
        if len(self._registry.models) == 1:
            return next(iter(self._registry.models))
        if len(pending) == 1 and not self._registry.models:
            raise StillLoading(self._registry.startup, pending[0].title)
        raise ApiError(400, "BadRequestException", "Parameter model_name is required.")

    def _headers(self, request: Request, target: ModelTarget) -> dict[str, str]:
        """Return the headers for the handler."""
        if self._tokens.enabled:
            # With the token, a handler could send requests to other models, or log it.
            headers = {name: value for name, value in request.headers if name.lower() != "authorization"}
        else:
            headers = dict(request.headers)
        if "Content-Length" not in headers and not request.header("content-length"):
            # As in TorchServe, whose handlers do not see that a body was sent in chunks.
            headers = {name: value for name, value in headers.items() if name.lower() != "transfer-encoding"}
            headers["content-length"] = str(len(request.body))
        if target.kserve and _is_mislabelled_json(request):
            # A handler that reads this header must not mistake JSON for a form.
            headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
            headers["Content-Type"] = _JSON
        headers.update(target.headers)
        return headers


def _name_version(span: RequestSpan, version: Version) -> None:
    span.attributes |= {"torchmar.model.name": version.name, "torchmar.model.version": version.version}


def _earlier(deadline: float | None, received: float, timeout: str) -> float:
    """Return the earlier of ``deadline`` and the deadline of ``timeout``, counted from ``received``.

    Raises:
        ApiError: 400, ``timeout`` is no number of milliseconds above 0 or too large.
    """
    try:
        milliseconds = float(timeout)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds <= _MAX_TIMEOUT_MS:
        message = (
            f"Header {_TIMEOUT} is {timeout[:100]!r}; it must be a number of milliseconds above 0, such as 500, and at "
            f"most {_MAX_TIMEOUT_MS:.0f}."
        )
        raise ApiError(400, "BadRequestException", message)
    requested = received + milliseconds / 1000
    return requested if deadline is None else min(deadline, requested)


def _in_json(inputs: list[Part], headers: dict[str, str]) -> tuple[list[Part], dict[str, str]]:
    """Return a request with binary tensors as JSON, for a handler that only reads JSON; any other request unchanged.

    Clients accept a response in JSON, even if they have requested bytes.

    Raises:
        ApiError: 400, it has no such tensors, or JSON cannot represent them.
    """
    lengths = [value for name, value in headers.items() if name.lower() == tensors.HEADER_LENGTH.lower()]
    if not lengths or len(inputs) != 1:
        return inputs, headers
    try:
        document, binary = tensors.split(bytes(inputs[0].content), int(lengths[0]), "inputs")
        document["inputs"] = [tensors.in_json(tensor) for tensor in binary]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ApiError(400, "BadRequestException", f"The tensors cannot be read: {error}.") from None
    remaining = {name: value for name, value in headers.items() if name.lower() != tensors.HEADER_LENGTH.lower()}
    return [Part("body", _JSON, json.dumps(document, ensure_ascii=False).encode())], remaining


def _is_mislabelled_json(request: Request) -> bool:
    """Return whether a request of KServe's protocols has JSON under another content type, which these protocols allow.

    ``curl -d`` sends JSON with the content type of a form by default, and other clients send no type at all.
    """
    if request.header(_BINARY) or bodies.is_json_type(request.header("content-type")):
        return False
    return bodies.begins_as_json(request.content)


def _allow_reading(request: Request) -> None:
    if request.method not in ("GET", "HEAD"):
        # The response to a path without a verb must not look like a prediction.
        raise not_allowed("GET", "HEAD")
