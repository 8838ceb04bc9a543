"""The registration of a model from an HTTP request, with a query or a JSON body."""

from __future__ import annotations

import json
from typing import Any

import yaml

from torchmar.server.api import management_openapi, parameters
from torchmar.server.api.bodies import is_json_type
from torchmar.server.api_error import ApiError
from torchmar.server.http import Request
from torchmar.server.models.registration import Registration, source

# TorchServe's default values, which its clients may send for unset parameters.
_UNSET = {"batch_size": -1, "max_batch_delay": -100, "response_timeout": -1, "startup_timeout": -1}


def registration(request: Request) -> Registration:
    """Return the registration in a request; its JSON body takes precedence over its query.

    Raises:
        ApiError: 400; there is no URL, the body is not a JSON object, or a parameter has a wrong type.
    """
    body = _body(request.body) if is_json_type(request.header("content-type")) else {}
    values = {**parameters.query(request), **body}
    parameters.check(values, management_openapi.REGISTRATION, "POST /models")
    if "url" not in values:
        raise ApiError(400, "BadRequestException", "Parameter url is required.")

    url, digest = source(values["url"], values.get("digest", ""))

    def number(name: str) -> int | None:
        unset = _UNSET.get(name)
        value: int | None = parameters.number(values, name, unset)
        return None if value == unset else value

    return Registration(
        url=url,
        digest=digest,
        model_name=values.get("model_name", ""),
        handler=values.get("handler", ""),
        runtime=values.get("runtime"),
        batch_size=number("batch_size"),
        max_batch_delay=number("max_batch_delay"),
        response_timeout=number("response_timeout"),
        startup_timeout=number("startup_timeout"),
        initial_workers=number("initial_workers"),
        synchronous=parameters.flag(values, "synchronous", default=True),
        ignored_checks=tuple(filter(None, values.get("torchmar_ignore_checks", "").split(","))),
    )


def _body(body: bytes) -> dict[str, str]:
    """Return the members of a JSON object as texts, as in a query, without null values."""
    try:
        document = json.loads(body or b"null")
    except (ValueError, RecursionError) as error:
        try:
            document = _lenient(body)
        except (ValueError, RecursionError, yaml.YAMLError):
            raise ApiError(400, "BadRequestException", f"The body is not JSON: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ApiError(400, "BadRequestException", "The body is not a JSON object.")
    content: dict[str, str] = {}
    for key, value in document.items():
        if isinstance(value, dict | list):
            raise ApiError(400, "BadRequestException", f"Parameter {key} is neither a text nor a number.")
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None:
            content[key] = str(value)
    return content


def _lenient(body: bytes) -> Any:
    """Return a body that TorchServe's JSON parser (Gson) accepts and others do not: apostrophes, names without quotes.

    Raises:
        ValueError, yaml.YAMLError: the body is no such object.
    """
    text = body.decode().strip()
    if not text.startswith("{"):
        raise ValueError("not an object")
    return yaml.load(text, yaml.BaseLoader)  # YAML's flow style; every value is a text
