"""The management API as OpenAPI documents, which ``OPTIONS`` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchmar.server.api.openapi_parts import (
    FLAG,
    JSON,
    TEXT,
    Parameter,
    Schema,
    array,
    document,
    operation,
    record,
    reference,
    response,
    whole_number,
)
from torchmar.server.models.registry import LABEL

_TOKEN = "management"
_ERRORS = {
    "400": "The token is wrong, or a parameter",
    "403": "The default version can only be removed last",
    "404": "No such model, version, archive or route",
    "405": "The configuration does not allow registrations at run time",
    "408": "The call took too long",
    "409": "In conflict with a registered model or version",
    "500": "The workers did not start",
    "503": "No worker is ready",
    "507": "A worker has no memory left",
}
_MOST_WORKERS = 1024
_MODELS_ON_A_PAGE = 100
_NAME = Parameter("path", "model_name", TEXT, "Name of the model.")
_VERSION = Parameter("path", "model_version", TEXT, "Version of the model.")
_NUMBER: Schema = {"type": "number"}
_INTEGER: Schema = {"type": "integer"}

# Parameters of a registration: name, schema, description.
_REGISTRATION: tuple[tuple[str, Schema, str], ...] = (
    ("url", TEXT, "A file name in the model store, or a URL that the server allows."),
    (
        "digest",
        {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
        "The SHA-256 that the archive's file must have.",
    ),
    ("model_name", TEXT, "Name of the model, in place of the archive's."),
    ("handler", TEXT, "Handler, in place of the archive's."),
    ("runtime", {"type": "string", "enum": ["python", "python3"]}, "Runtime, in place of the archive's."),
    ("batch_size", whole_number(1), "Requests in a batch of the handler; default: 1."),
    ("max_batch_delay", whole_number(0), "Milliseconds; default: 100."),
    ("response_timeout", whole_number(1), "Seconds for a response; default: the server's value."),
    ("startup_timeout", whole_number(0), "Seconds for a start, 0 for no limit; default: the server's value."),
    (
        "initial_workers",
        whole_number(0, _MOST_WORKERS),
        "Number of workers at first; default: the server's value, which is 0.",
    ),
    ("synchronous", FLAG, "Whether to respond only when the workers are ready; default: true."),
    ("s3_sse_kms", FLAG, "Whether an archive in S3 is encrypted with a key of AWS KMS; without effect here."),
    ("torchmar_ignore_checks", TEXT, "Codes of checks to ignore, or beginnings of codes, with commas; MAR: all."),
)
#: The names of a registration's parameters.
REGISTRATION = tuple(name for name, _, _ in _REGISTRATION)
_MODEL_VERSION = record(
    {
        "modelName": TEXT,
        "modelVersion": TEXT,
        "modelUrl": TEXT,
        "runtime": TEXT,
        "minWorkers": _INTEGER,
        "maxWorkers": _INTEGER,
        "batchSize": _INTEGER,
        "maxBatchDelay": _NUMBER,
        "responseTimeout": _NUMBER,
        "startupTimeout": _NUMBER,
        "maxRetryTimeoutInSec": _NUMBER,
        "clientTimeoutInMills": _NUMBER,
        "parallelType": TEXT,
        "parallelLevel": _INTEGER,
        "deviceType": TEXT,
        "continuousBatching": FLAG,
        "useJobTicket": FLAG,
        "useVenv": FLAG,
        "stateful": FLAG,
        "sequenceMaxIdleMSec": _INTEGER,
        "sequenceTimeoutMSec": _INTEGER,
        "maxNumSequence": _INTEGER,
        "maxSequenceJobQueueSize": _INTEGER,
        "loadedAtStartup": FLAG,
        "workers": array(reference("Worker")),
        "jobQueueStatus": record({"remainingCapacity": _INTEGER, "pendingRequests": _INTEGER}),
    },
    {
        "deviceIds": array(_INTEGER),
        "failure": {"type": "string", "description": "Why its workers do not load: the traceback of the last one."},
        "stages": {
            "type": "object",
            "description": "Workers of the stages preprocess and postprocess, if the archive has them.",
            "additionalProperties": array(reference("Worker")),
        },
        "customizedMetadata": {"type": "object", "description": "The handler's description; with customized=true."},
    },
)
_SCHEMAS: Mapping[str, Schema] = {
    "Description": record({"openapi": TEXT, "info": {"type": "object"}, "paths": {"type": "object"}}),
    "Status": record({"status": TEXT}),
    "Route": record({"model": TEXT}, {"version": TEXT}),
    "Downloads": record({"downloads": array(record({"url": TEXT, "received": _INTEGER}, {"size": _INTEGER}))}),
    "Routes": record({"routes": {"type": "object", "additionalProperties": reference("Route")}}),
    "Labels": record({"labels": {"type": "object", "additionalProperties": TEXT}}),
    "ModelReady": record({"name": TEXT, "ready": FLAG}),
    "ModelList": record({"models": array(record({"modelName": TEXT, "modelUrl": TEXT}))}, {"nextPageToken": TEXT}),
    "Registration": {
        **record({}, {name: {**schema, "description": text} for name, schema, text in _REGISTRATION}),
        # As in TorchServe, other keys are ignored; but no parameter is a list or an object.
        "additionalProperties": {"anyOf": [TEXT, _NUMBER, FLAG]},
    },
    "ModelVersion": _MODEL_VERSION,
    "Worker": record(
        {
            "id": TEXT,
            "startTime": {"type": "string", "format": "date-time"},
            "status": {"type": "string", "enum": ["READY", "LOADING", "UNLOADING"]},
            "memoryUsage": {**_INTEGER, "format": "int64"},
            "pid": _INTEGER,
            "gpu": FLAG,
            "gpuUsage": TEXT,
        },
        {
            "node": {"type": "string", "description": "In a cluster: the node of the worker."},
            "device": {"type": "string", "description": "In a cluster: `cpu`, or the GPUs of the node: `gpu 0`."},
            "failure": {"type": "string", "description": "In a cluster: the traceback, if it does not load."},
        },
    ),
}
_STATUS = {"200": response("Done", reference("Status"))}
_LATER = {**_STATUS, "202": response("Started; the response does not wait for the workers", reference("Status"))}


def management(tokens: bool) -> dict[str, Any]:
    """Return the document of the whole API.

    Args:
        tokens: whether requests need a token, so that there is a call that renews it.
    """
    token = _TOKEN if tokens else ""
    described = {"200": response("An OpenAPI document", reference("Description"))}
    limit = "Models on a page, 100 at the most, which is the default."
    next_page = "The start of the page: nextPageToken of the previous page."
    paths: dict[str, Any] = {
        "/": {"options": operation("apiDescription", "Describe this API.", described)},
        "/models": {
            "get": operation(
                "listModels",
                "List the models by name, each with the archive of its default version.",
                {"200": response("A page of models", reference("ModelList"))},
                errors=_errors("400"),
                parameters=(
                    Parameter("query", "limit", whole_number(0), limit),
                    Parameter("query", "next_page_token", whole_number(0), next_page),
                ),
                token=token,
            ),
            "post": operation(
                "registerModel",
                "Register an archive. A JSON body may have the same parameters, and takes precedence.",
                _LATER,
                errors=_errors("400", "404", "405", "409", "500", "507"),
                parameters=tuple(
                    Parameter("query", name, schema, text, required=name == "url")
                    for name, schema, text in _REGISTRATION
                ),
                body={JSON: reference("Registration")},
                body_required=False,
                token=token,
            ),
        },
        **_of_models(token),
        **_of_routes(token),
        "/downloads": {
            "get": operation(
                "listDownloads",
                "Return the running downloads of archives, with the received bytes.",
                {"200": response("The downloads", reference("Downloads"))},
                errors=_errors("400"),
                token=token,
            )
        },
        "/v1/models/{model_name}": {
            "get": operation(
                "ready",
                "Return whether a worker of the default version is ready.",
                {"200": response("Whether one is", reference("ModelReady"))},
                errors=_errors("400", "404"),
                parameters=(_NAME,),
                token=token,
            )
        },
        "/api-description": {"get": operation("api-description", "Describe this API.", described)},
    }
    if tokens:
        kind = Parameter(
            "query", "type", {"type": "string", "enum": ["management", "inference"]}, "Which token.", required=True
        )
        paths["/token"] = {
            "get": operation(
                "token",
                "Write a new token into the key file. The token of this call is the API key.",
                {"200": response("Written; the response does not contain it")},
                errors={**_errors("400"), "409": "The token is fixed by the configuration"},
                parameters=(kind,),
                token=token,
            )
        }
    description = "Registers models, describes, scales and removes them"
    return document("TorchServe APIs", description, paths, _SCHEMAS, token=token)


def of_model(name: str, tokens: bool) -> dict[str, Any]:
    """Return the document of the calls that concern one model."""
    token = _TOKEN if tokens else ""
    title = f"RESTful Management API for: {name}"
    return document(title, "Describes, scales and removes a model", _of_models(token), _SCHEMAS, token=token)


def _of_routes(token: str) -> dict[str, Any]:
    path = Parameter("path", "path", TEXT, "The path of the route without its first slash; it may have slashes.")
    return {
        "/routes": {
            "get": operation(
                "listRoutes",
                "Return the paths of the user's choice, with the model that each leads to.",
                {"200": response("The routes", reference("Routes"))},
                errors=_errors("400"),
                token=token,
            )
        },
        "/routes/{path}": {
            "get": operation(
                "describeRoute",
                "Return the model that a path leads to.",
                {"200": response("The route", reference("Route"))},
                errors=_errors("400", "404"),
                parameters=(path,),
                token=token,
            ),
            "put": operation(
                "setRoute",
                "Make a path lead to a model's predictions.",
                _STATUS,
                errors=_errors("400", "404"),
                parameters=(
                    path,
                    Parameter("query", "model", {**TEXT, "minLength": 1}, "Name of the model.", required=True),
                    Parameter("query", "version", TEXT, "Its version; default: the default one at each request."),
                ),
                token=token,
            ),
            "delete": operation(
                "removeRoute",
                "Remove a route.",
                _STATUS,
                errors=_errors("400", "404"),
                parameters=(path,),
                token=token,
            ),
        },
    }


def _of_models(token: str) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for path, prefix, parameters in (
        ("/models/{model_name}", "", (_NAME,)),
        ("/models/{model_name}/{model_version}", "version_", (_NAME, _VERSION)),
    ):
        default = "a version" if prefix else "the default version"
        paths[path] = {
            "get": operation(
                f"{prefix}describeModel",
                f"Describe {default}; with all as the version, every one.",
                {"200": response("The versions", array(reference("ModelVersion")))},
                errors=_errors("400", "404", "500", "503"),
                parameters=(
                    *parameters,
                    Parameter("query", "customized", FLAG, "Whether to add the handler's own description."),
                ),
                token=token,
            ),
            "put": operation(
                f"{prefix}setAutoScale",
                f"Start or stop workers of {default}.",
                _LATER,
                errors=_errors("400", "404", "500", "507"),
                parameters=(
                    *parameters,
                    Parameter("query", "min_worker", whole_number(0, _MOST_WORKERS), "Workers to have; default: 1."),
                    Parameter(
                        "query", "max_worker", whole_number(0, _MOST_WORKERS), "Most workers; default: min_worker."
                    ),
                    Parameter("query", "synchronous", FLAG, "Whether to respond when all is done; default: false."),
                ),
                token=token,
            ),
            "delete": operation(
                f"{prefix}unregisterModel",
                f"Remove {default}, once its requests are answered.",
                _STATUS,
                errors=_errors("400", "403", "404", "405", "408"),
                parameters=parameters,
                token=token,
            ),
            "options": operation(
                f"{prefix}describeCalls",
                "Describe the calls that concern the model.",
                {"200": response("An OpenAPI document", reference("Description"))},
                errors=_errors("400", "404"),
                parameters=parameters,
                token=token,
            ),
        }
    paths["/models/{model_name}/{model_version}/set-default"] = {
        "put": operation(
            "setDefault",
            "Make a version the default one.",
            _STATUS,
            errors=_errors("400", "404", "409"),
            parameters=(_NAME, _VERSION),
            token=token,
        )
    }
    version = Parameter("query", "version", {**TEXT, "minLength": 1}, "The version.", required=True)
    label = Parameter("path", "label", {"type": "string", "pattern": LABEL}, "The label.")
    paths["/models/{model_name}/labels"] = {
        "get": operation(
            "listLabels",
            "Return the version of each label, which TensorFlow Serving's clients name in place of a version.",
            {"200": response("The labels", reference("Labels"))},
            errors=_errors("400", "404"),
            parameters=(_NAME,),
            token=token,
        )
    }
    paths["/models/{model_name}/labels/{label}"] = {
        "put": operation(
            "setLabel",
            "Make a label stand for a version.",
            _STATUS,
            errors=_errors("400", "404", "409"),
            parameters=(_NAME, label, version),
            token=token,
        ),
        "delete": operation(
            "removeLabel",
            "Remove a label.",
            _STATUS,
            errors=_errors("400", "404"),
            parameters=(_NAME, label),
            token=token,
        ),
    }
    return paths


def _errors(*statuses: str) -> dict[str, str]:
    return {status: _ERRORS[status] for status in statuses}
