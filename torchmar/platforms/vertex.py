"""Vertex AI and Google Distributed Cloud: the conversion of variables ``AIP_...`` to the server's configuration.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements: the server listens on all interfaces
at ``AIP_HTTP_PORT``, responds to health checks at ``AIP_HEALTH_ROUTE``, and to ``{"instances": [...]}`` at
``AIP_PREDICT_ROUTE``. The model is ``model.mar`` below ``AIP_STORAGE_URI``, or in the image if that is empty. Requests
reach handlers as in Google's own PyTorch containers, which run TorchServe with the envelope ``json``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torchmar import manifest, platforms
from torchmar.errors import TorchmarError
from torchmar.platforms import Demands
from torchmar.properties import Properties
from torchmar.server.api.model_target import model_target
from torchmar.server.config import routes, values

#: The name of the archive's file, and the name of its model.
FILE_NAME, MODEL_NAME = "model.mar", "model"
HEALTH_ROUTE, PREDICT_ROUTE = "/ping", f"/predictions/{MODEL_NAME}"

_MAX_REQUEST = 10 << 20  # the limit of private endpoints, which is higher than that of public ones
_ALL = re.compile(r"[a-z][a-z0-9+.-]*://.*", re.IGNORECASE)


def demands(environment: Mapping[str, str], config: Properties) -> Demands:
    """Return the demands of Vertex AI.

    Args:
        environment: variables ``AIP_...``; a missing or empty one has the usual value of TorchServe.
        config: configuration of the user. Its ``service_envelope`` and ``max_request_size`` are kept.

    Raises:
        TorchmarError: a variable has an invalid value, or there is no model.
    """
    port = platforms.port(environment, "AIP_HTTP_PORT", 8080)
    health = _path(environment, "AIP_HEALTH_ROUTE", HEALTH_ROUTE)
    predict = _path(environment, "AIP_PREDICT_ROUTE", PREDICT_ROUTE)
    name, route = _model_of(predict)
    store = Path(config.get("model_store") or "model_store").resolve()
    url, allowed = _archive(environment.get("AIP_STORAGE_URI", "").strip().rstrip("/"), store)
    configured = config.get("allowed_urls") or f"{re.escape(store.as_uri())}/.*"
    return Demands(
        values={
            **platforms.without_tokens(),
            **platforms.loopback_addresses(platforms.ports_beside(port)),
            "inference_address": f"http://0.0.0.0:{port}",
            "torchmar_health_path": health,
            "torchmar_routes": routes.show(route),
            "load_models": f"{name}={platforms.in_list(url)}",
            "model_snapshot": "",
            "allowed_urls": ",".join(filter(None, [configured, allowed])),
            "service_envelope": config.get("service_envelope") or "json",
            "max_request_size": config.get("max_request_size") or str(_MAX_REQUEST),
            "max_response_size": config.get("max_response_size") or str(_MAX_REQUEST),
        },
        notes=(
            f"Vertex AI: health checks at {health}, predictions at {predict}",
            f"its requests have no tokens: every client that reaches port {port} can use the model; no model can be "
            "registered",
        ),
    )


def _path(environment: Mapping[str, str], variable: str, default: str) -> str:
    text = environment.get(variable, "").strip() or default
    try:
        return values.url_path(text)
    except ValueError as error:
        raise TorchmarError(f"{variable}={text}: {error}", hint=f"the usual one is {default}") from None


def _model_of(path: str) -> tuple[str, dict[str, routes.Route]]:
    """Return the model's name, and a route for it; no route for a path of an API, which contains the name."""
    target = model_target(path.rstrip("/").split("/")[1:])
    if target and target.version is None and not target.label and not target.verb:
        if target.model and not manifest.is_name(target.model):
            raise TorchmarError(
                f"AIP_PREDICT_ROUTE={path}: {target.model!r} cannot be a model's name",
                hint=f"the usual one is {PREDICT_ROUTE}",
            )
        return target.model or MODEL_NAME, {}
    try:
        return MODEL_NAME, {routes.check_path(path.rstrip("/")): routes.Route(MODEL_NAME)}
    except ValueError as error:
        raise TorchmarError(f"AIP_PREDICT_ROUTE={path}: {error}", hint=f"the usual one is {PREDICT_ROUTE}") from None


def _archive(uri: str, store: Path) -> tuple[str, str]:
    """Return the URL of the archive, and a pattern for it if it is not in a folder of this machine; otherwise an empty
    one.

    Args:
        uri: URI of the folder with ``model.mar``; empty: it is in the model store.
        store: the model store of the image.
    """
    if _ALL.fullmatch(uri):
        return f"{uri}/{FILE_NAME}", f"{re.escape(uri)}/.*"
    if uri:
        if not (archive := Path(uri).resolve() / FILE_NAME).is_file():
            raise TorchmarError(
                f"AIP_STORAGE_URI={uri}: it has no {FILE_NAME}", hint="torchmar export vertex makes one"
            )
        return str(archive), ""
    file = store / FILE_NAME
    return (file if file.is_file() else platforms.only_archive(store, "Vertex AI")).name, ""
