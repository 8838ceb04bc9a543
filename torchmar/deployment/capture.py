"""Write the actual state of a server as a ``deployment.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from torchmar.deployment import versions
from torchmar.deployment.actual import LiveModel, LiveRoute
from torchmar.deployment.store_index import StoreIndex
from torchmar.deployment.target import SETTINGS
from torchmar.management import ModelVersion


def capture(
    live: Mapping[str, LiveModel],
    index: StoreIndex,
    section: Mapping[str, str] | None = None,
    routes: Mapping[str, LiveRoute] | None = None,
) -> str:
    """Return the text of a ``deployment.yaml`` that has an empty plan for this state.

    For several builds of one version, only the default one is written, or else the newest.

    Args:
        live: the registered models.
        index: the server's model store. A build is written under the name of its version if the version has an archive.
        section: keys of the section ``server:``.
        routes: routes of the server; None: it has none.
    """
    document: dict[str, Any] = {"server": dict(section)} if section else {}
    if entries := {path: _route(route, live, index) for path, route in (routes or {}).items() if route.model in live}:
        document["routes"] = entries
    document["models"] = {name: _model(model, index) for name, model in sorted(live.items())}
    return dump(document)


def dump(document: Mapping[str, Any]) -> str:
    """Return the text of a ``deployment.yaml`` with these keys."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def _model(model: LiveModel, index: StoreIndex) -> dict[str, Any]:
    chosen: dict[str, ModelVersion] = {}

    def rank(version: ModelVersion) -> tuple[bool, int]:
        return version.version == model.default, versions.number(version.version)

    for version in sorted(model.versions.values(), key=rank):
        chosen[versions.base(version.version)] = version
    in_order = sorted(chosen.values(), key=lambda version: versions.newest_first(version.version))
    names = {version.version: _name(model.name, version, index) for version in in_order}
    return {
        "default": names[model.default],
        "versions": {names[version.version]: _version(names[version.version], version, index) for version in in_order},
    }


def _route(route: LiveRoute, live: Mapping[str, LiveModel], index: StoreIndex) -> Any:
    registered = live[route.model].versions.get(route.version or "")
    if registered is None:
        return route.model
    return {"model": route.model, "version": _name(route.model, registered, index)}


def _name(model: str, version: ModelVersion, index: StoreIndex) -> str:
    """Return the version of a build if its archive is in the store, so that builds can be derived; or the build."""
    base = versions.base(version.version)
    return base if base != version.version and f"{model}-{base}.mar" in index.archives else version.version


def _version(name: str, version: ModelVersion, index: StoreIndex) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if name == version.version and version.url != f"{version.name}-{name}.mar":
        document["archive"] = version.url
    document["min_workers"] = len(version.workers)
    if version.max_workers > len(version.workers):
        document["max_workers"] = version.max_workers
    document |= {key: getattr(version, key) for key in SETTINGS}
    if version.device_ids:
        document["devices"] = sorted(set(version.device_ids))
    stored = index.archives.get(version.url)
    if stored and stored.worker_memory:
        document["worker_memory"] = f"{stored.worker_memory // 2**20}MiB"
    return document


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # Quotes for all versions: YAML reads 1.0.1 without quotes as text, but 1.0 as a number.
    quoted = value[:1].isdigit()
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if quoted else None)


_Dumper.add_representer(str, _text)
