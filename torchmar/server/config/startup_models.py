"""The models that a server loads at startup: ``load_models`` and ``model_snapshot`` of its configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torchmar.archive import file_digest
from torchmar.archive.store import is_archive

_ENTRY = re.compile(r"(?:([^=/]+)=)?(.+)")  # a later "=" is part of the URL
_NUMBERS = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout")
# Further keys of an entry: TorchServe's, and those of this server's snapshots.
_TEXTS = ("runtimeType", "handler")


@dataclass(frozen=True)
class StartupModel:
    """A model that a server loads at startup.

    Attributes:
        url: URL of its registration: a file name in the model store, a URL or a path.
        key: key of the configuration that contains it: ``load_models`` or ``model_snapshot``.
        name: name, in place of the archive's; empty: the archive's.
        fallback: name if neither has one; TorchServe derives it from the name of the file.
        version: version in a snapshot; empty: the archive's.
        default: whether it is the default version in a snapshot.
        state: options in a snapshot, under TorchServe's keys (``minWorkers``, ``batchSize``), and ``labels``.
        served_version: version, in place of the archive's; empty: the archive's.
        digest: expected SHA-256 of the file, in hexadecimal; empty: any.
    """

    url: str
    _: KW_ONLY
    key: str = "load_models"
    name: str = ""
    fallback: str = ""
    version: str = ""
    default: bool = False
    state: Mapping[str, Any] = field(default_factory=dict, hash=False)
    served_version: str = ""
    digest: str = ""

    @property
    def title(self) -> str:
        """Its name for messages before the archive is read."""
        return self.name or self.fallback


def parse_load_models(text: str) -> tuple[tuple[str, str], ...] | Literal["all"]:
    """Return registrations, ``(name or "", url)``, or ``"all"``.

    Raises:
        ValueError: a URL ends in ``#sha256=`` without a digest.
    """
    if text.lower() in ("all", "none"):
        return "all" if text.lower() == "all" else ()
    # TorchServe treats a space after the comma as part of the name, and finds no such file.
    entries = [match for part in text.split(",") if (match := _ENTRY.fullmatch(part.strip()))]
    for match in entries:
        file_digest.split(match[2])
    return tuple((match[1] or "", match[2]) for match in entries)


def parse_snapshot(text: str) -> tuple[StartupModel, ...]:
    """Return the models of a ``model_snapshot``; of several versions of a model, the default is first.

    Raises:
        ValueError: the text is no snapshot; the message says where.
    """
    try:
        document = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    models = document.get("models") if isinstance(document, dict) else None
    if not isinstance(models, dict):
        raise ValueError("has no object of models")
    entries = []
    for name, versions in models.items():
        if not isinstance(versions, dict):
            raise ValueError(f"{name} is not an object of versions")
        if not versions:
            raise ValueError(f"{name} has no version")
        of_model = [_snapshot_entry(name, version, entry) for version, entry in versions.items()]
        entries += sorted(of_model, key=lambda model: not model.default)
    return tuple(entries)


def in_store(store: Path) -> list[StartupModel]:
    """Return every archive in a model store, by file name, as ``load_models=all`` loads them."""
    names = sorted(path.name for path in store.iterdir() if is_archive(path))
    return [StartupModel(name, fallback=fallback_name(name)) for name in names]


def fallback_name(url: str) -> str:
    """Return TorchServe's name for a model whose archive has none."""
    name = url.rstrip("/").rpartition("/")[2]
    stem = name.rpartition(".")[0] if ".mar" in name or ".model" in name else name
    return re.sub(r"\W|^_", "_", stem, flags=re.ASCII)


def explain(model: StartupModel, message: str) -> str:
    """Return the reason why a model is not loaded, with a correction if its URL has spaces."""
    if not re.search(r"\s", model.url):
        return message
    separated = ",".join(model.url.split())
    return f"{message}; a comma separates models: {model.key}={separated}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {duplicate!r} is given twice in one object")
    return content


def _snapshot_entry(name: str, version: str, entry: object) -> StartupModel:
    place = f"{name} {version}"
    if not isinstance(entry, dict):
        raise ValueError(f"{place} is not an object")
    url = entry.get("marName")
    if not isinstance(url, str) or not url:
        raise ValueError(f"{place}: marName, the archive's file name, is missing")
    state: dict[str, Any] = {}
    for key in _NUMBERS:
        value = entry.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{place}: {key} is {value!r}, not a whole number")
        if value < 0:
            raise ValueError(f"{place}: {key} is {value}, less than 0")
        state[key] = value
    state |= {key: str(entry[key]) for key in _TEXTS if entry.get(key)}
    labels = entry.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{place}: labels is {labels!r}, not a list of labels")
    if labels:
        state["labels"] = labels
    default = entry.get("defaultVersion") is True
    digest = entry.get("digest", "")
    if not isinstance(digest, str):
        raise ValueError(f"{place}: digest is {digest!r}, not a text")
    return StartupModel(
        url,
        key="model_snapshot",
        name=name,
        fallback=fallback_name(url),
        version=version,
        default=default,
        state=state,
        digest=file_digest.parse(digest),
    )
