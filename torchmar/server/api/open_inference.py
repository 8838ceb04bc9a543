"""What the server answers by itself below ``/v2``: the Open Inference Protocol and Triton's extensions of it."""

from __future__ import annotations

import json
from typing import Any

from torchmar.server.api import model_documents
from torchmar.server.api_error import ApiError, not_allowed
from torchmar.server.http import Request
from torchmar.server.models.health import ready
from torchmar.server.models.registry import Registry
from torchmar.server.models.startup import StillLoading
from torchmar.server.telemetry.metrics import Metrics

LOADING = "models are loaded by the management API: POST /models?url=... registers one, DELETE /models/NAME removes it"
SHARED_MEMORY = "shared memory is not supported; send the data in the request"
TRACE = "the trace extension is not supported; the metrics API tells how long requests take"
LOGGING = "the logging extension is not supported; torchmar_log_format in config.properties lays out the logs"
GENERATE = "the generate extension is not supported; send tensors to /v2/models/NAME/infer"


class OpenInference:
    """The paths.

    Args:
        registry: the models.
        metrics: where requests are counted.
    """

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self._registry, self._metrics = registry, metrics

    def answer(self, request: Request, segments: list[str]) -> tuple[int, Any]:
        """Return the status and the document of an answer.

        Args:
            request: the request.
            segments: of the path, behind ``v2``.

        Raises:
            ApiError: 404, there is no such path, model or version; 405, not for that method; 501, an extension that is
                not supported.
        """
        registry = self._registry
        if missing := _unsupported(segments):
            raise ApiError(501, "NotImplementedException", missing)
        if segments == ["repository", "index"]:
            return 200, model_documents.index(registry, ready=_only_ready(request))
        answer = self._read(segments)
        if request.method not in ("GET", "HEAD"):
            raise not_allowed("GET", "HEAD")  # a client that forgot the verb must not take this for a prediction
        return answer

    def _read(self, segments: list[str]) -> tuple[int, Any]:
        registry = self._registry
        match segments:
            case []:
                return 200, model_documents.server()
            case ["health", "live"]:
                return 200, {"live": True}
            case ["health", "ready"]:
                answers = ready(registry)
                return 200 if answers else 503, {"ready": answers}
            case ["models", "stats"] if "stats" not in registry.models:
                return 200, model_documents.statistics(registry, self._metrics)
            case ["models", name]:
                return 200, model_documents.metadata(registry, registry.find(name))
            case ["models", name, "versions", version]:
                return 200, model_documents.metadata(registry, registry.find(name, version))
            case ["models", name, what]:
                return self._of_model(name, None, what)
            case ["models", name, "versions", version, what]:
                return self._of_model(name, version, what)
        raise not_found()

    def _of_model(self, name: str, version: str | None, what: str) -> tuple[int, Any]:
        try:
            model = self._registry.find(name, version)
        except StillLoading:
            if what != "ready":
                raise
            return 503, {"name": name, "ready": False}
        match what:
            case "ready":
                answers = model.pool.ready > 0
                return 200 if answers else 503, {"name": name, "ready": answers}
            case "config":
                return 200, model_documents.config(model)
            case "stats":
                return 200, model_documents.statistics(self._registry, self._metrics, name, version or "")
        raise not_found()


def not_found() -> ApiError:
    """Return the refusal of a path that there is not."""
    return ApiError(404, "ResourceNotFoundException", "Requested resource is not found, please refer to API document.")


def _unsupported(segments: list[str]) -> str:
    """Return why a path of one of Triton's extensions is not answered; empty if it is none of these."""
    match segments:
        case ["repository", "models", _, "load" | "unload"]:
            return LOADING
        case ["systemsharedmemory" | "cudasharedmemory", *_]:
            return SHARED_MEMORY
        case ["trace", "setting"] | ["models", _, "trace", "setting"]:
            return TRACE
        case ["logging"]:
            return LOGGING
        case ["models", _, "generate" | "generate_stream"]:
            return GENERATE
        case ["models", _, "versions", _, "generate" | "generate_stream"]:
            return GENERATE
    return ""


def _only_ready(request: Request) -> bool:
    """Return what the body of a request for the index says: whether only models that take requests are meant."""
    if not request.body:
        return False
    try:
        document = json.loads(request.body)
    except ValueError:
        raise ApiError(400, "BadRequestException", "The body is not JSON.") from None
    return isinstance(document, dict) and document.get("ready") is True
