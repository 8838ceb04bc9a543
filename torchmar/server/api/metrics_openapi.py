"""The metrics API described as an OpenAPI 3.0.1 document, the answer to ``OPTIONS /`` there."""

from __future__ import annotations

from typing import Any

from torchmar.server.api.openapi_parts import TEXT, Parameter, array, document, operation, response

_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


def description() -> dict[str, Any]:
    """Return the document."""
    names = Parameter("query", "name[]", array(TEXT), "Names of the metrics to return; default: all.")
    anything: dict[str, Any] = {"type": "object"}
    paths = {
        "/metrics": {
            "get": operation(
                "metrics",
                "Return metrics in the text format of Prometheus.",
                {"200": response("Metrics", TEXT, _TEXT_FORMAT)},
                parameters=(names,),
            )
        },
        "/": {
            "options": operation(
                "apiDescription", "Describe this API.", {"200": response("An OpenAPI document", anything)}
            )
        },
    }
    return document("TorchServe APIs", "Metrics of the server and of its models", paths, {})
