"""The inference API described as OpenAPI 3.0.1 documents, for those who ask with OPTIONS."""

from __future__ import annotations

from typing import Any

import torchmar

_PREDICT = {
    "/predictions/{model_name}": "",
    "/predictions/{model_name}/{model_version}": "version_",
    "/v1/models/{model_name}:predict": "kserve_v1_",
    "/v2/models/{model_name}/infer": "kserve_v2_",
    "/v2/models/{model_name}/versions/{model_version}/infer": "kserve_v2_version_",
    "/invocations": "sagemaker_",
    "/models/{model_name}/invoke": "sagemaker_model_",
}
_EXPLAIN = {
    "/explanations/{model_name}": "",
    "/explanations/{model_name}/{model_version}": "version_",
    "/v1/models/{model_name}:explain": "kserve_v1_",
    "/v2/models/{model_name}/explain": "kserve_v2_",
}
_READY = {
    "/v1/models/{model_name}": "kserve_v1_",
    "/v2/models/{model_name}/ready": "kserve_v2_",
    "/v2/models/{model_name}/versions/{model_version}/ready": "kserve_v2_version_",
}
_METADATA = {
    "/v2/models/{model_name}": "kserve_v2_",
    "/v2/models/{model_name}/versions/{model_version}": "kserve_v2_version_",
}


def document() -> dict[str, Any]:
    """Return the document of the whole API."""
    said = {
        "/": {"options": _reading("apiDescription", "Describe this API.")},
        "/api-description": {"get": _reading("api-description", "Describe this API.")},
        "/ping": {"get": _reading("ping", "Tell whether the models have workers that answer.", "500")},
        "/v2": {"get": _reading("kserve_v2_metadata", "Name the server and its version.")},
        "/v2/health/live": {"get": _reading("kserve_v2_live", "Tell that the server is up.")},
        "/v2/health/ready": {"get": _reading("kserve_v2_ready", "Tell whether every model has a worker.", "503")},
    }
    info = {
        "title": "TorchServe APIs",
        "description": "Predictions and explanations of models",
        "version": torchmar.__version__,
    }
    return {"openapi": "3.0.1", "info": info, "paths": {**said, **_of_models()}}


def of_model(name: str) -> dict[str, Any]:
    """Return the document of the calls that concern one model."""
    paths = {path.replace("{model_name}", name): calls for path, calls in _of_models(name).items()}
    info = {"title": f"RESTful API for: {name}", "version": torchmar.__version__}
    return {"openapi": "3.0.1", "info": info, "paths": paths}


def _of_models(name: str = "") -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for table, method, identity, description, errors in (
        (_PREDICT, "post", "predictions", "Return a model's prediction.", ("404", "500", "503", "507")),
        (_EXPLAIN, "post", "explanations", "Return why a model predicts what it does.", ("404", "500", "503", "507")),
        (_READY, "get", "ready", "Tell whether a model has a worker that answers.", ("404", "503")),
        (_METADATA, "get", "metadata", "Return the versions of a model.", ("404",)),
    ):
        for path, prefix in table.items():
            operation = _reading(f"{prefix}{identity}", description, *errors)
            wanted = [one for one in ("model_name", "model_version") if f"{{{one}}}" in path]
            operation["parameters"] = [
                {"in": "path", "name": one, "required": True, "schema": {"type": "string"}}
                for one in wanted
                if not (name and one == "model_name")
            ]
            if path == "/invocations":
                operation["parameters"] = [{"in": "query", "name": "model_name", "schema": {"type": "string"}}]
            if method == "post":
                anything = {"schema": {"type": "string", "format": "binary"}}
                operation["requestBody"] = {"content": {"*/*": anything}, "required": True}
                operation["responses"]["200"] = {
                    "description": "What the handler answers",
                    "content": {"*/*": anything},
                }
            paths[path] = {method: operation}
    return paths


def _reading(identity: str, description: str, *errors: str) -> dict[str, Any]:
    kinds = {"code": "integer", "type": "string", "message": "string"}
    error = {"type": "object", "required": [*kinds], "properties": {key: {"type": kind} for key, kind in kinds.items()}}
    responses: dict[str, Any] = {
        "200": {"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}}
    }
    for status in ("400", *errors):
        text = _ERRORS[status]
        responses[status] = {"description": text, "content": {"application/json": {"schema": error}}}
    return {"description": description, "operationId": identity, "parameters": [], "responses": responses}


_ERRORS = {
    "400": "The token is wrong, or the request",
    "404": "No such model or version",
    "500": "The worker died or took too long, or what is asked for is not well",
    "503": "No worker can answer, or the handler failed",
    "507": "The worker has no memory left",
}
