"""The model in a path of the inference API: of TorchServe, KServe, TensorFlow Serving, SageMaker, or of a route.

A route is a path that the user has configured for a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torchmar.server.config.routes import Route

_PREDICT, _EXPLAIN = {"explain": "False"}, {"explain": "True"}
_V1_VERBS = {"predict": _PREDICT, "explain": _EXPLAIN}
#: Verbs of TensorFlow Serving whose requests and responses differ from those of ``predict``.
_EXAMPLE_VERBS = ("classify", "regress")
_NAME, _VERSION = "{model_name}", "{model_version}"
_V2_VERBS = {"infer": _PREDICT, "explain": _EXPLAIN}


class ModelTarget(NamedTuple):
    """The model of a path, and the rules for reading its requests.

    Attributes:
        model: name of the model; None: it is in the query or the form, or it is the only registered one.
        version: version of the model; None: the default version.
        headers: further headers for the handler.
        query: whether parameters of the query become parts of the handler's row.
        tensors: whether the path is of the Open Inference Protocol: tensors may be binary, and the response is
            compressed if the client accepts it.
        kserve: whether the path is of KServe's protocols, whose bodies are JSON whatever their content type.
        tensorflow: whether the path is also of TensorFlow Serving, so that a version may be a number of that API.
        label: label of the version, in place of ``version``.
        verb: ``classify`` or ``regress``; empty: any other verb.
        route: template of the path, for traces.
    """

    model: str | None
    version: str | None
    headers: Mapping[str, str]
    query: bool = False
    tensors: bool = False
    kserve: bool = False
    tensorflow: bool = False
    label: str = ""
    verb: str = ""
    route: str = ""


def model_target(segments: list[str]) -> ModelTarget | None:
    """Return the model in the segments of a path; None if the path does not belong to a model."""
    match segments:
        case ["predictions" | "explanations" as verb, name, *rest]:
            # Further segments after the version are for the handler.
            headers = {"url_path": "/".join(rest[1:]), **(_EXPLAIN if verb == "explanations" else _PREDICT)}
            route = f"/{verb}/{_NAME}/{_VERSION}" if rest else f"/{verb}/{_NAME}"
            return ModelTarget(name, rest[0] if rest else None, headers, route=route)
        case ["v1", "models", *names, last] if ":" in last:
            final, _, verb = last.rpartition(":")
            return _v1_target([*names, final], verb)
        case ["v2", "models", name, verb] if verb in _V2_VERBS:
            route = f"/v2/models/{_NAME}/{verb}"
            return ModelTarget(name, None, _V2_VERBS[verb], tensors=True, kserve=True, route=route)
        case ["v2", "models", name, "versions", version, verb] if verb in _V2_VERBS:
            route = f"/v2/models/{_NAME}/versions/{_VERSION}/{verb}"
            return ModelTarget(name, version, _V2_VERBS[verb], tensors=True, kserve=True, route=route)
        case ["invocations"]:
            return ModelTarget(None, None, {}, query=True, route="/invocations")
        case ["models", name, "invoke"]:
            return ModelTarget(name, None, {}, query=True, route=f"/models/{_NAME}/invoke")
        case [name, "predict"]:
            return ModelTarget(name, None, {}, query=True, route=f"/{_NAME}/predict")
        case [name, version, "predict"]:
            return ModelTarget(name, version, {}, query=True, route=f"/{_NAME}/{_VERSION}/predict")
    return None


def route_target(path: str, route: Route) -> ModelTarget:
    """Return the model of a route; its requests are read as those of ``/predictions``."""
    return ModelTarget(route.model, route.version, {"url_path": "", **_PREDICT}, route=path)


def _v1_target(segments: list[str], verb: str) -> ModelTarget | None:
    """Return the model in a path below ``/v1/models``, from the segments before the verb."""
    if verb in _EXAMPLE_VERBS:
        headers, example_verb = _PREDICT, verb
    elif verb in _V1_VERBS:
        headers, example_verb = _V1_VERBS[verb], ""
    else:
        return None
    match segments:
        case [name]:
            version, label, route = None, "", ""
        case [name, "versions", version]:
            label, route = "", f"/versions/{_VERSION}"
        case [name, "labels", label]:
            version, route = None, "/labels/{label}"
        case _:
            return None
    route = f"/v1/models/{_NAME}{route}:{verb}"
    return ModelTarget(
        name, version, headers, kserve=True, tensorflow=True, label=label, verb=example_verb, route=route
    )
