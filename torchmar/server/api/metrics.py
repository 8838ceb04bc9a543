"""The routes of the metrics API."""

from __future__ import annotations

import json

from torchmar.server.api import metrics_openapi
from torchmar.server.api_error import ApiError, not_allowed
from torchmar.server.http import Request
from torchmar.server.telemetry.metrics import Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsApi:
    """The metrics API: ``GET /metrics``, which needs no token; ``name[]=`` selects lines by their names.

    ``OPTIONS /`` returns its OpenAPI description.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __call__(self, request: Request) -> None:
        """Respond to a request.

        Raises:
            ApiError: 404 for other paths, 405 for other methods.
        """
        if request.path == "/" and request.method == "OPTIONS":
            self._metrics.answered(200)
            body = json.dumps(metrics_openapi.description(), indent=2).encode() + b"\n"
            request.respond(200, body, "application/json")
            return
        if request.path.rstrip("/") != "/metrics":
            raise ApiError(
                404, "ResourceNotFoundException", "Requested resource is not found, please refer to API document."
            )
        if request.method not in ("GET", "HEAD"):
            raise not_allowed("GET", "HEAD")
        names = {value for key, value in request.query if key == "name[]"}
        self._metrics.answered(200)
        request.respond(200, self._metrics.text(names).encode(), CONTENT_TYPE)
