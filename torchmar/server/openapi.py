"""The management API described as an OpenAPI 3.0.1 document, for those who ask with OPTIONS."""

from __future__ import annotations

from typing import Any

import torchmar

_NAME = ("path", "model_name", "string", "Name of the model.")
_VERSION = ("path", "model_version", "string", "Version of the model.")
_SYNCHRONOUS = ("query", "synchronous", "boolean", "Whether to answer when it is done.")
_ERRORS = {
    "400": "The token is wrong, or a parameter",
    "403": "The default version goes last",
    "404": "No such model, version or archive",
    "405": "Models are not registered at run time here",
    "409": "In conflict with what is registered",
    "500": "Internal Server Error",
    "503": "No worker can answer",
}

Parameter = tuple[str, str, str, str]


def management(tokens: bool) -> dict[str, Any]:
    """Return the document of the whole API.

    Args:
        tokens: whether the server wants tokens, so that there is a call that renews them.
    """
    paths: dict[str, Any] = {
        "/": {"options": _operation("apiDescription", "Describe this API.", "405")},
        "/models": {
            "get": _operation(
                "listModels",
                "List the models by name, each with the archive of its default version.",
                "400",
                parameters=(
                    ("query", "limit", "integer", "Models on a page, 100 at the most, which is the default."),
                    ("query", "next_page_token", "string", "What the page before has told as nextPageToken."),
                ),
            ),
            "post": _operation("registerModel", "Register an archive.", *_ALL, parameters=_REGISTRATION, later=True),
        },
        **_of_models(),
        "/v1/models/{model_name}": {
            "get": _operation(
                "ready", "Tell whether a worker of the default version answers.", "404", parameters=(_NAME,)
            )
        },
        "/api-description": {"get": _operation("api-description", "Describe this API.")},
    }
    if tokens:
        kind = ("query", "type", "string", "management or inference.")
        paths["/token"] = {
            "get": _operation("token", "Write a new token into the key file.", "400", parameters=(kind,))
        }
    description = "Registers models, describes, scales and removes them"
    return _document({"title": "TorchServe APIs", "description": description, "version": torchmar.__version__}, paths)


def of_model(name: str) -> dict[str, Any]:
    """Return the document of the calls that concern one model."""
    title = f"RESTful Management API for: {name}"
    return _document({"title": title, "version": torchmar.__version__}, _of_models())


def _of_models() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for path, prefix, which in (
        ("/models/{model_name}", "", (_NAME,)),
        ("/models/{model_name}/{model_version}", "version_", (_NAME, _VERSION)),
    ):
        default = "a version" if prefix else "the default version"
        customized = ("query", "customized", "boolean", "Ask the handler, too, what it says of itself.")
        low = ("query", "min_worker", "integer", "Workers there are to be; default: 1.")
        high = ("query", "max_worker", "integer", "Workers there may be; default: min_worker.")
        paths[path] = {
            "get": _operation(
                f"{prefix}describeModel",
                f"Describe {default}; with all as the version, every one.",
                *("400", "404", "503"),
                parameters=(*which, customized),
            ),
            "put": _operation(
                f"{prefix}setAutoScale",
                f"Start or end workers of {default}.",
                *("400", "404", "500"),
                parameters=(*which, low, high, _SYNCHRONOUS),
                later=True,
            ),
            "delete": _operation(
                f"{prefix}unregisterModel",
                f"Remove {default}, when it has answered what it was asked.",
                *("400", "403", "404", "405"),
                parameters=which,
            ),
        }
    paths["/models/{model_name}/{model_version}/set-default"] = {
        "put": _operation(
            "setDefault", "Make a version the default one.", "400", "404", "409", parameters=(_NAME, _VERSION)
        )
    }
    return paths


_ALL = ("400", "404", "405", "409", "500")
_REGISTRATION: tuple[Parameter, ...] = (
    ("query", "url", "string", "A file name in the model store, or a URL that the server allows."),
    ("query", "model_name", "string", "In place of the archive's name."),
    ("query", "handler", "string", "In place of the archive's handler."),
    ("query", "runtime", "string", "In place of the archive's runtime: python or python3."),
    ("query", "batch_size", "integer", "Requests that the handler gets at once; default: 1."),
    ("query", "max_batch_delay", "integer", "Milliseconds; default: 100."),
    ("query", "response_timeout", "integer", "Seconds; default: the server's."),
    ("query", "startup_timeout", "integer", "Seconds; default: the server's."),
    ("query", "initial_workers", "integer", "Workers to start with; default: the server's, which is none."),
    ("query", "synchronous", "boolean", "Whether to answer when the workers do; default: true."),
    ("query", "s3_sse_kms", "boolean", "Whether an archive in S3 is encrypted with a key of AWS KMS."),
)


def _operation(
    identity: str, description: str, *errors: str, parameters: tuple[Parameter, ...] = (), later: bool = False
) -> dict[str, Any]:
    answers = {"200": "Done", **({"202": "Begun"} if later else {})}
    return {
        "description": description,
        "operationId": identity,
        "parameters": [
            {
                "in": place,
                "name": name,
                "description": text,
                "required": place == "path" or name in ("url", "type"),
                "schema": {"type": kind},
            }
            for place, name, kind, text in parameters
        ],
        "responses": {
            **{status: _response(text) for status, text in answers.items()},
            **{status: _response(_ERRORS[status], error=True) for status in errors},
        },
    }


def _response(description: str, *, error: bool = False) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if error:
        kinds = {"code": "integer", "type": "string", "message": "string"}
        schema["required"] = list(kinds)
        schema["properties"] = {name: {"type": kind} for name, kind in kinds.items()}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _document(info: dict[str, str], paths: dict[str, Any]) -> dict[str, Any]:
    return {"openapi": "3.0.1", "info": info, "paths": paths}
