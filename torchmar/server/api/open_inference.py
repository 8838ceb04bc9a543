"""Documents below ``/v2``: the Open Inference Protocol and Triton's extensions of it."""

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
TRACE = "the trace extension is not supported; the metrics API has the durations of requests"
LOGGING = "the logging extension is not supported; torchmar_log_format in config.properties lays out the logs"
GENERATE = "the generate extension is not supported; send tensors to /v2/models/NAME/infer"


class OpenInference:
    """The paths below ``/v2``.

    Args:
        registry: the models.
        metrics: provides the statistics.
    """

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self._registry, self._metrics = registry, metrics

    def answer(self, request: Request, segments: list[str]) -> tuple[int, Any]:
        """Return the status and the document of a response.

        Args:
            request: the request.
            segments: segments of the path after ``v2``.

        Raises:
            ApiError: 404, the path, model or version does not exist; 405, the path does not accept this method; 501, an
                extension that is not supported.
        """
        if message := _unsupported(segments):
            raise ApiError(501, "NotImplementedException", message)
        if segments == ["repository", "index"]:
            return 200, model_documents.index(self._registry, ready=_only_ready(request))
        response = self._read(segments)
        if request.method not in ("GET", "HEAD"):
            # The response to a path without a verb must not look like a prediction.
            raise not_allowed("GET", "HEAD")
        return response

    def _read(self, segments: list[str]) -> tuple[int, Any]:
        registry = self._registry
        match segments:
            case []:
                return 200, model_documents.server()
            case ["health", "live"]:
                return 200, {"live": True}
            case ["health", "ready"]:
                is_ready = ready(registry)
                return 200 if is_ready else 503, {"ready": is_ready}
            case ["models", "stats"] if "stats" not in registry.models:
                return 200, model_documents.statistics(registry, self._metrics)
            case ["models", name]:
                return 200, model_documents.metadata(registry, registry.find(name))
            case ["models", name, "versions", version]:
                return 200, model_documents.metadata(registry, registry.find(name, version))
            case ["models", name, document]:
                return self._of_model(name, None, document)
            case ["models", name, "versions", version, document]:
                return self._of_model(name, version, document)
        raise not_found()

    def _of_model(self, name: str, version: str | None, document: str) -> tuple[int, Any]:
        try:
            model = self._registry.find(name, version)
        except StillLoading:
            if document != "ready":
                raise
            return 503, {"name": name, "ready": False}
        match document:
            case "ready":
                is_ready = model.pool.ready > 0
                return 200 if is_ready else 503, {"name": name, "ready": is_ready}
            case "config":
                return 200, model_documents.config(model)
            case "stats":
                return 200, model_documents.statistics(self._registry, self._metrics, name, version or "")
        raise not_found()


def not_found() -> ApiError:
    """Return the error for a path that does not exist."""
    return ApiError(404, "ResourceNotFoundException", "Requested resource is not found, please refer to API document.")


def _unsupported(segments: list[str]) -> str:
    """Return the message for the path of an unsupported extension of Triton's; empty for any other path."""
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
    """Return whether a request for the index selects only ready models."""
    if not request.body:
        return False
    try:
        document = json.loads(request.body)
    except ValueError:
        raise ApiError(400, "BadRequestException", "The body is not JSON.") from None
    return isinstance(document, dict) and document.get("ready") is True
