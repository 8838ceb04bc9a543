"""Write a live server down as a ``deployment.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from torchmar.deployment import versions
from torchmar.deployment.actual import LiveModel
from torchmar.deployment.store_index import StoreIndex
from torchmar.management import ModelVersion


def capture(live: Mapping[str, LiveModel], index: StoreIndex, place: Mapping[str, str] | None = None) -> str:
    """Return the text of a ``deployment.yaml`` whose plan has nothing to do.

    Of several builds of one version the default, or else the newest, is written down.

    Args:
        live: what the server has.
        index: its model store; a build is written as the version that it is of where that has an archive.
        place: what to write under ``server:``.
    """
    document: dict[str, Any] = {"server": dict(place)} if place else {}
    document["models"] = {name: _model(model, index) for name, model in sorted(live.items())}
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def _model(model: LiveModel, index: StoreIndex) -> dict[str, Any]:
    chosen: dict[str, ModelVersion] = {}
    for one in model.versions.values():
        base = versions.base(one.version)
        other = chosen.get(base)
        rank = (one.version == model.default, versions.number(one.version))
        if other is None or rank > (other.version == model.default, versions.number(other.version)):
            chosen[base] = one
    in_order = sorted(chosen.values(), key=lambda one: versions.newest_first(one.version))
    names = {one.version: _name(model.name, one, index) for one in in_order}
    return {
        "default": names[model.default],
        "versions": {names[one.version]: _version(names[one.version], one, index) for one in in_order},
    }


def _name(model: str, one: ModelVersion, index: StoreIndex) -> str:
    """Return the version that a build is of, if its own archive is there to derive others from."""
    base = versions.base(one.version)
    return base if base != one.version and f"{model}-{base}.mar" in index.archives else one.version


def _version(name: str, one: ModelVersion, index: StoreIndex) -> dict[str, Any]:
    written: dict[str, Any] = {}
    if name == one.version and one.url != f"{one.name}-{name}.mar":
        written["archive"] = one.url
    written["min_workers"] = len(one.workers)
    if one.max_workers > len(one.workers):
        written["max_workers"] = one.max_workers
    for key in ("batch_size", "max_batch_delay", "response_timeout", "startup_timeout"):
        written[key] = getattr(one, key)
    if one.device_ids:
        written["devices"] = sorted(set(one.device_ids))
    stored = index.archives.get(one.url)
    if stored and stored.worker_memory:
        written["worker_memory"] = f"{stored.worker_memory // 2**20}MiB"
    return written


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # Versions in quotes, though YAML would take 1.0.1 without: 1.0 it would not.
    quoted = value[:1].isdigit()
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if quoted else None)


_Dumper.add_representer(str, _text)
