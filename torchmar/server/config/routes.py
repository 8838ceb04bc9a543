"""``torchmar_routes``: the user's own paths for the predictions of models.

``{"/inference": "clinic", "/v2x/score": {"model": "clinic", "version": "2.0"}}``
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_PATH = re.compile(r"(/[^/\s?#%{}\\\x00-\x1f\x7f]+)+")
# First segments of the paths of all APIs, because these may share an address.
_RESERVED = frozenset(
    {
        *("api-description", "console", "explanations", "invocations", "metrics", "models", "ping", "predictions"),
        *("routes", "token", "v2"),
    }
)
# Other paths below /v1 are free: Vertex AI sends requests to /v1/endpoints/... by default.
_RESERVED_V1 = ("", "models")


class Route(NamedTuple):
    """The model and version of a path.

    Attributes:
        model: name of the model.
        version: version of the model; None: the default version at the time of a request.
    """

    model: str
    version: str | None = None


def parse(text: str) -> dict[str, Route]:
    """Return the routes of ``torchmar_routes`` by path.

    Raises:
        ValueError: the text is no such object, or a path is not possible; the message says which.
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError('not an object like {"/inference": "clinic"}')
    return {check_path(path): _route(path, value) for path, value in document.items()}


def show(routes: Mapping[str, Route]) -> str:
    """Return routes in the syntax of `parse`."""
    return json.dumps({path: document(route) for path, route in routes.items()}, ensure_ascii=False)


def document(route: Route) -> dict[str, str]:
    """Return a route as JSON: its model, and its version if it has one."""
    return {"model": route.model, **({"version": route.version} if route.version is not None else {})}


def check_path(path: str) -> str:
    """Return the path of a route.

    Raises:
        ValueError: the path is malformed, or would hide a path of an API.
    """
    if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ValueError(
            f"{path!r} is not a path like /inference, without an empty part, a slash at its end, spaces and ?#%{{}}"
        )
    first, second = (*path.split("/")[1:], "")[:2]
    if first in _RESERVED or (first == "v1" and second in _RESERVED_V1):
        raise ValueError(f"the route {path} would hide paths of the server's APIs below /{first}; choose another path")
    return path


def _route(path: str, value: object) -> Route:
    values = {"model": value} if isinstance(value, str) else value
    if not isinstance(values, dict) or not isinstance(values.get("model"), str) or not values["model"]:
        raise ValueError(f"{path}: not the name of a model, and not an object with model")
    if unknown := sorted(values.keys() - {"model", "version"}):
        raise ValueError(f"{path}: there is no key {unknown[0]!r}; there are model and version")
    version = values.get("version")
    if version is not None and (not isinstance(version, str) or not version):
        raise ValueError(f"{path}: version is {json.dumps(version)}; write it in quotes")
    return Route(values["model"], version)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {duplicate!r} is given twice in one object")
    return content
