"""``torchmar_model_base_paths``: folders with a version in each entry, as TensorFlow Serving's ``model_base_path``.

``{"clinic": "/models/clinic"}`` serves the newest of ``/models/clinic/1``, ``/models/clinic/2.mar`` ...; an object in
place of the path has ``base_path``, ``versions`` (``"all"``, ``{"latest": 2}`` or a list of numbers) and ``labels``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class VersionPolicy:
    """The selection of the versions of a model that are served.

    Attributes:
        latest: number of the newest versions; 0: all.
        versions: names of versions to serve, in place of ``latest``; empty: ``latest`` decides.
    """

    latest: int = 1
    versions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BasePath:
    """The folder with the versions of one model.

    Attributes:
        name: name of the model.
        path: the folder; it need not exist yet.
        policy: the versions to serve.
        labels: labels, with the version of each.
    """

    name: str
    path: Path
    policy: VersionPolicy = field(default_factory=VersionPolicy)
    labels: Mapping[str, str] = field(default_factory=dict)


def parse(text: str) -> tuple[BasePath, ...]:
    """Return the folders of ``torchmar_model_base_paths``.

    Raises:
        ValueError: the text is no such object; the message says where.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError('not an object like {"clinic": "/models/clinic"}')
    return tuple(_base_path(name, value) for name, value in document.items())


def show(paths: tuple[BasePath, ...]) -> str:
    """Return folders in the syntax of `parse`."""
    return json.dumps({base_path.name: _document(base_path) for base_path in paths}, ensure_ascii=False)


def _document(base_path: BasePath) -> dict[str, Any]:
    policy = base_path.policy
    versions: Any = list(policy.versions) or ({"latest": policy.latest} if policy.latest else "all")
    return {"base_path": str(base_path.path), "versions": versions, "labels": dict(base_path.labels)}


def _base_path(name: str, value: object) -> BasePath:
    values = {"base_path": value} if isinstance(value, str) else value
    if not isinstance(values, dict) or not isinstance(values.get("base_path"), str) or not values["base_path"]:
        raise ValueError(f"{name}: not a path, and not an object with base_path")
    if unknown := sorted(values.keys() - {"base_path", "versions", "labels"}):
        raise ValueError(f"{name}: there is no key {unknown[0]!r}; there are base_path, versions and labels")
    labels = values.get("labels", {})
    if not isinstance(labels, dict):
        raise ValueError(f"{name}: labels is not an object of labels and versions")
    return BasePath(
        name=name,
        path=Path(values["base_path"]),
        policy=_policy(name, values.get("versions", {"latest": 1})),
        labels={label: str(version) for label, version in labels.items()},
    )


def _policy(name: str, value: object) -> VersionPolicy:
    if value == "all":
        return VersionPolicy(latest=0)
    if isinstance(value, dict) and value.keys() == {"latest"} and type(value["latest"]) is int and value["latest"] > 0:
        return VersionPolicy(latest=value["latest"])
    if isinstance(value, list) and value and all(str(version).isdigit() for version in value):
        return VersionPolicy(versions=tuple(str(int(str(version))) for version in value))
    raise ValueError(f'{name}: versions is {json.dumps(value)}, not "all", {{"latest": 1}} or a list of numbers')
