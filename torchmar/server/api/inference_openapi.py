"""The inference API as OpenAPI documents, which ``OPTIONS`` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torchmar.server.api.openapi_parts import (
    ANYTHING,
    BINARY,
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
from torchmar.server.config.routes import Route

_TOKEN = "inference"
_UNAUTHORIZED = {"400": "The token is wrong, or the request"}
_NO_MODEL = {"404": "No such model or version"}
_OF_MODEL = {
    **_UNAUTHORIZED,
    **_NO_MODEL,
    "413": "The body is larger than max_request_size",
    "500": "The worker died or took too long",
    "503": "No worker can answer, or the handler failed",
    "507": "The worker has no memory left",
}
_FORM: Schema = {"type": "object", "additionalProperties": True}
_PLAIN: dict[str, Schema] = {JSON: ANYTHING, "application/octet-stream": BINARY, "multipart/form-data": _FORM}
# Usually JSON; a handler may choose another type.
_RESULT = {"200": response("The result of the handler", ANYTHING, JSON, "*/*")}
# A handler may choose any other status, with its own body.
_OTHER_RESULT = {"default": response("Any other response of the handler")}


class _Call(NamedTuple):
    """A call to a handler, at several paths."""

    identity: str
    description: str
    paths: Mapping[str, str]  # each with the prefix of the operation's id
    body: Mapping[str, Schema]
    results: Mapping[str, Any]


_CALLS = (
    _Call(
        "predictions",
        "Predict with a model. The body is what its handler takes.",
        {
            "/predictions/{model_name}": "",
            "/predictions/{model_name}/{model_version}": "version_",
            "/invocations": "sagemaker_",
            "/models/{model_name}/invoke": "sagemaker_model_",
        },
        _PLAIN,
        _RESULT,
    ),
    _Call(
        "explanations",
        "Explain a model's prediction. The body is what its handler takes.",
        {"/explanations/{model_name}": "", "/explanations/{model_name}/{model_version}": "version_"},
        _PLAIN,
        _RESULT,
    ),
    _Call(
        "predictions",
        "Predict with a model, in the first protocol of KServe.",
        {
            "/v1/models/{model_name}:predict": "kserve_v1_",
            "/v1/models/{model_name}/versions/{model_version}:predict": "kserve_v1_version_",
            "/v1/models/{model_name}/labels/{label}:predict": "tensorflow_label_",
        },
        {JSON: {"oneOf": [reference("V1Request"), reference("V1Columns")]}},
        {"200": response("The predictions, in the order of the instances", reference("V1Predictions"))},
    ),
    *(
        _Call(
            verb,
            f"{sentence} examples, in the protocol of TensorFlow Serving.",
            {
                f"/v1/models/{{model_name}}:{verb}": "tensorflow_",
                f"/v1/models/{{model_name}}/versions/{{model_version}}:{verb}": "tensorflow_version_",
                f"/v1/models/{{model_name}}/labels/{{label}}:{verb}": "tensorflow_label_",
            },
            {JSON: reference("Examples")},
            {"200": response("The results, in the order of the examples", reference("Results"))},
        )
        for verb, sentence in (("classify", "Classify"), ("regress", "Predict a number for"))
    ),
    _Call(
        "explanations",
        "Explain a model's predictions, in the first protocol of KServe.",
        {
            "/v1/models/{model_name}:explain": "kserve_v1_",
            "/v1/models/{model_name}/versions/{model_version}:explain": "kserve_v1_version_",
        },
        {JSON: reference("V1Request")},
        {"200": response("The explanations, in the order of the instances", reference("V1Explanations"))},
    ),
    _Call(
        "infer",
        "Predict with a model, in the Open Inference Protocol.",
        {
            "/v2/models/{model_name}/infer": "kserve_v2_",
            "/v2/models/{model_name}/versions/{model_version}/infer": "kserve_v2_version_",
        },
        {JSON: reference("V2Request")},
        {"200": response("The outputs of the model", reference("V2Response"))},
    ),
    _Call(
        "explain",
        "Explain a model's predictions, with a request of the Open Inference Protocol.",
        {
            "/v2/models/{model_name}/explain": "kserve_v2_",
            "/v2/models/{model_name}/versions/{model_version}/explain": "kserve_v2_version_",
        },
        {JSON: reference("V2Request")},
        _RESULT,
    ),
)
_MODEL_READY = {
    "/v1/models/{model_name}": "kserve_v1_",
    "/v2/models/{model_name}/ready": "kserve_v2_",
    "/v2/models/{model_name}/versions/{model_version}/ready": "kserve_v2_version_",
}
# Documents of a model below /v2: end of the path, operation, summary, and schema of the response.
_DOCUMENTS = (
    (
        "",
        "metadata",
        "Return the versions of a model, and its tensors if the handler describes them.",
        "Metadata",
    ),
    (
        "/config",
        "config",
        "Return how a model is served, in the format of Triton's model configuration.",
        "Configuration",
    ),
    ("/stats", "statistics", "Return how many requests a model has answered, as Triton does.", "Statistics"),
)
_OF_VERSIONS = {
    "/v2/models/{model_name}": "kserve_v2_",
    "/v2/models/{model_name}/versions/{model_version}": "kserve_v2_version_",
}
_V1_VERSIONS = {
    "/v1/models/{model_name}/versions/{model_version}": "tensorflow_version_",
    "/v1/models/{model_name}/labels/{label}": "tensorflow_label_",
}
_PARAMETERS = {
    "model_name": Parameter("path", "model_name", TEXT, "Name of the model."),
    "model_version": Parameter("path", "model_version", TEXT, "Version of the model."),
    "label": Parameter("path", "label", TEXT, "Label of a version of the model."),
}
_SAGEMAKER_NAME = Parameter("query", "model_name", TEXT, "Name of the model; needed where several are registered.")
_TENSOR = record({"name": TEXT, "datatype": TEXT, "shape": array(whole_number(-1))}, {"parameters": {"type": "object"}})
_TENSOR_DATA = record(
    {"name": TEXT, "shape": array(whole_number(0)), "datatype": TEXT, "data": ANYTHING},
    {"parameters": {"type": "object"}},
)
_SCHEMAS: Mapping[str, Schema] = {
    "Description": record({"openapi": TEXT, "info": {"type": "object"}, "paths": {"type": "object"}}),
    "Alive": record({"status": {"type": "string", "enum": ["alive"]}}),
    "Health": record({"status": {"type": "string", "enum": ["Healthy", "Partial Healthy", "Unhealthy"]}}),
    "Live": record({"live": FLAG}),
    "Ready": record({"ready": FLAG}),
    "ModelReady": record({"name": TEXT, "ready": FLAG}, {"model_version_status": array({"type": "object"})}),
    "ModelStatus": record({"model_version_status": array({"type": "object"})}),
    "SignatureMetadata": record({"model_spec": {"type": "object"}, "metadata": {"type": "object"}}),
    "ModelNames": record({"models": array(TEXT)}),
    "Server": record({"name": TEXT, "version": TEXT, "extensions": array(TEXT)}),
    "Metadata": record(
        {
            "name": TEXT,
            "versions": array(TEXT),
            "platform": TEXT,
            "inputs": array(reference("Tensor")),
            "outputs": array(reference("Tensor")),
        }
    ),
    "Configuration": record(
        {
            "name": TEXT,
            "platform": TEXT,
            "backend": TEXT,
            "max_batch_size": whole_number(0),
            "input": array({"type": "object"}),
            "output": array({"type": "object"}),
            "instance_group": array({"type": "object"}),
            "dynamic_batching": {"type": "object"},
        }
    ),
    "Statistics": record({"model_stats": array({"type": "object"})}),
    "Index": array(record({"name": TEXT, "version": TEXT, "state": TEXT, "reason": TEXT})),
    "Tensor": _TENSOR,
    "TensorData": _TENSOR_DATA,
    "V1Request": record({"instances": array(ANYTHING)}, {"signature_name": TEXT}),
    "V1Columns": record({"inputs": ANYTHING}, {"signature_name": TEXT}),
    "V1Predictions": {"anyOf": [record({"predictions": ANYTHING}), record({"outputs": ANYTHING})]},
    "Examples": record(
        {"examples": array({"type": "object"})}, {"context": {"type": "object"}, "signature_name": TEXT}
    ),
    "Results": record({"results": array(ANYTHING)}),
    "V1Explanations": record({"explanations": ANYTHING}),
    "V2Request": record(
        {"inputs": array(reference("TensorData"))},
        {"id": TEXT, "parameters": {"type": "object"}, "outputs": array(record({"name": TEXT}))},
    ),
    "V2Response": record(
        {"model_name": TEXT, "outputs": array(reference("TensorData"))},
        {"model_version": TEXT, "id": TEXT, "parameters": {"type": "object"}},
    ),
}


def describe(
    *, tokens: bool, health_token: bool = False, routes: Mapping[str, Route] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the document of the whole API.

    Args:
        tokens: whether requests need a token.
        health_token: whether health checks also need a token.
        routes: paths of the user's choice.
    """
    token = _TOKEN if tokens else ""
    probe = token if health_token else ""
    probe_errors = _UNAUTHORIZED if probe else {}
    errors = _UNAUTHORIZED if token else {}
    health, ready = reference("Health"), reference("Ready")
    paths: dict[str, Any] = {
        "/": {
            "get": operation(
                "kserve_v1_live",
                "Return that the server is up.",
                {"200": response("Up", reference("Alive"))},
                errors=probe_errors,
                token=probe,
            ),
            "options": operation(
                "apiDescription",
                "Describe this API.",
                {"200": response("An OpenAPI document", reference("Description"))},
            ),
        },
        "/api-description": {
            "get": operation(
                "api-description",
                "Describe this API.",
                {"200": response("An OpenAPI document", reference("Description"))},
            )
        },
        "/ping": {
            "get": operation(
                "ping",
                "Return whether the models have workers that are ready.",
                {"200": response("They have", health), "500": response("A model has none", health)},
                errors=probe_errors,
                token=probe,
            )
        },
        "/v1/models": {
            "get": operation(
                "kserve_v1_models",
                "List the names of the models.",
                {"200": response("The names", reference("ModelNames"))},
                errors=errors,
                token=token,
            )
        },
        "/v2": {
            "get": operation(
                "kserve_v2_metadata_of_server",
                "Return the server's name and version.",
                {"200": response("Name and version", reference("Server"))},
                errors=errors,
                token=token,
            )
        },
        "/v2/models/stats": {
            "get": operation(
                "kserve_v2_statistics_of_models",
                "Return how many requests each version has answered, as Triton does.",
                {"200": response("Statistics", reference("Statistics"))},
                errors=errors,
                token=token,
            )
        },
        "/v2/repository/index": {
            "post": operation(
                "kserve_v2_index",
                "List the registered versions and their states, as Triton does.",
                {"200": response("Versions", reference("Index"))},
                errors=errors,
                token=token,
            )
        },
        "/v2/health/live": {
            "get": operation(
                "kserve_v2_live",
                "Return that the server is up.",
                {"200": response("Up", reference("Live"))},
                errors=probe_errors,
                token=probe,
            )
        },
        "/v2/health/ready": {
            "get": operation(
                "kserve_v2_ready",
                "Return whether every model has a worker that is ready.",
                {"200": response("Every one has", ready), "503": response("A model has none", ready)},
                errors=probe_errors,
                token=probe,
            )
        },
        **dict(_of_models(token)),
        **dict(_of_routes(token, routes)),
    }
    return document("TorchServe APIs", "Predictions and explanations of models", paths, _SCHEMAS, token=token)


def describe_model(name: str, *, tokens: bool, routes: Mapping[str, Route] = MappingProxyType({})) -> dict[str, Any]:
    """Return the document of the calls that concern one model."""
    token = _TOKEN if tokens else ""
    paths = {path.replace("{model_name}", name): calls for path, calls in _of_models(token, named=True)}
    paths |= _of_routes(token, {path: route for path, route in routes.items() if route.model == name})
    return document(f"RESTful API for: {name}", f"Predictions and explanations of {name}", paths, _SCHEMAS, token=token)


def _of_routes(token: str, routes: Mapping[str, Route]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the operations of each path of the user's choice."""
    for number, (path, route) in enumerate(routes.items(), 1):
        version = f", version {route.version}" if route.version is not None else ""
        described = operation(
            f"route_{number}_predictions",
            f"Predict with the model {route.model}{version}. The body is what its handler takes.",
            {**_RESULT, **_OTHER_RESULT},
            errors=_OF_MODEL,
            body=_PLAIN,
            token=token,
        )
        yield path, {"post": described}


def _of_models(token: str, *, named: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the operations of each path of a model.

    Args:
        token: name of the security scheme.
        named: whether paths contain the model's name in place of a parameter.
    """

    def of(path: str) -> tuple[Parameter, ...]:
        return tuple(
            parameter
            for name, parameter in _PARAMETERS.items()
            if f"{{{name}}}" in path and not (named and name == "model_name")
        )

    for call in _CALLS:
        for path, prefix in call.paths.items():
            parameters = (_SAGEMAKER_NAME,) if path == "/invocations" else of(path)
            results = {**call.results, **_OTHER_RESULT}
            described = operation(
                f"{prefix}{call.identity}",
                call.description,
                results,
                errors=_OF_MODEL,
                parameters=parameters,
                body=call.body,
                token=token,
            )
            yield path, {"post": described}
    ready = reference("ModelReady")
    for path, prefix in _MODEL_READY.items():
        described = operation(
            f"{prefix}model_ready",
            "Return whether a worker of a model is ready.",
            {"200": response("One is", ready), "503": response("None is", ready)},
            errors={**_UNAUTHORIZED, **_NO_MODEL} if token else _NO_MODEL,
            parameters=of(path),
            token=token,
        )
        yield path, {"get": described}
    signatures = {"/v1/models/{model_name}": "tensorflow_", **_V1_VERSIONS}
    for paths, end, identity, description, schema in (
        (_V1_VERSIONS, "", "status", "Return the state of a version, as TensorFlow Serving does.", "ModelStatus"),
        (signatures, "/metadata", "metadata", "Return the inputs and outputs of a model.", "SignatureMetadata"),
    ):
        for path, prefix in paths.items():
            described = operation(
                f"{prefix}{identity}",
                description,
                {"200": response(schema, reference(schema))},
                errors={**_UNAUTHORIZED, **_NO_MODEL} if token else _NO_MODEL,
                parameters=of(path),
                token=token,
            )
            yield f"{path}{end}", {"get": described}
    for end, identity, description, schema in _DOCUMENTS:
        for start, prefix in _OF_VERSIONS.items():
            described = operation(
                f"{prefix}{identity}",
                description,
                {"200": response(schema, reference(schema))},
                errors={**_UNAUTHORIZED, **_NO_MODEL} if token else _NO_MODEL,
                parameters=of(start),
                token=token,
            )
            yield f"{start}{end}", {"get": described}
