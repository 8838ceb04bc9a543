"""The state file: the models of a running server, which the next start restores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchmar import properties
from torchmar.archive.store import is_archive
from torchmar.atomic import write_text
from torchmar.errors import TorchmarError
from torchmar.server.config import routes
from torchmar.server.config.startup_models import parse_snapshot
from torchmar.server.models import snapshots
from torchmar.server.telemetry import logs

if TYPE_CHECKING:
    from torchmar.properties import Properties
    from torchmar.server.models.registry import Registry

FILE_NAME = "state.json"
_SCHEMA = "torchmar-state/1"
# Keys of an entry whose values are not from the archive's configuration.
_OF_REGISTRATION = ("defaultVersion", "marName", "labels", "handler", "digest")


class StateFile:
    """Rewrites the state file after every change of the registered models.

    Args:
        path: path of the file.
        config: ``config.properties`` that the server was started with.
        store: the model store.
        registry: the models.
    """

    def __init__(self, path: Path, config: Path, store: Path, registry: Registry) -> None:
        self._path, self._store, self._registry = path, store, registry
        configuration = properties.read(config)
        self._load_models, self._routes = configuration.get("load_models"), configuration.get("torchmar_routes")

    def save(self) -> None:
        """Write the file; if that fails, log a warning."""
        try:
            write_text(json.dumps(self._document(), indent=1) + "\n", self._path)
        except (OSError, TorchmarError) as error:
            logs.SERVER.warning("the state is not saved: %s", error)

    def _document(self) -> dict[str, Any]:
        models = snapshots.document(self._registry, self._path.name)["models"]
        for versions in models.values():
            for version, entry in versions.items():
                versions[version] = {**entry, "file": _stamp(self._store / entry["marName"])}
        return {
            "schema": _SCHEMA,
            "model_store": str(self._store),
            "load_models": self._load_models,
            "torchmar_routes": self._routes,
            "archives": sorted(path.name for path in self._store.iterdir() if is_archive(path)),
            "models": models,
            "routes": json.loads(routes.show(self._registry.routes.by_path)),
        }


@dataclass(frozen=True, kw_only=True)
class State:
    """The content of a state file, without entries that no longer fit the model store.

    Attributes:
        path: path of the file.
        models: number of versions.
        overrides: keys of the configuration that restore the models.
        archives: archives of the model store when the file was written; others are new.
        notes: sentences about models that are not restored.
    """

    path: Path
    models: int
    overrides: Mapping[str, str]
    archives: frozenset[str]
    notes: tuple[str, ...]


def read(path: Path, store: Path, config: Properties) -> State | None:
    """Return the state that an earlier server has written.

    Args:
        path: path of the state file.
        store: model store; the state of another model store is ignored.
        config: configuration; if its ``load_models`` or ``torchmar_routes`` have changed since, they take precedence
            over the state.

    Returns:
        The state; None if there is none for this store and configuration.

    Raises:
        TorchmarError: the file cannot be read.
    """
    try:
        document = json.loads(path.read_bytes())
        if document["schema"] != _SCHEMA:
            schema = str(document["schema"])[:100]
            raise _unreadable(path, f"it is of another version of torchmar ({schema}; this one reads {_SCHEMA})")
        if document["model_store"] != str(store) or document["load_models"] != config.get("load_models"):
            return None
        notes: list[str] = []
        models = _current(document["models"], store, notes)
        snapshot = json.dumps({"models": models})
        overrides = {"model_snapshot": snapshot}
        if document["torchmar_routes"] == config.get("torchmar_routes"):
            overrides["torchmar_routes"] = json.dumps(document["routes"])
            routes.parse(overrides["torchmar_routes"])
        return State(
            path=path,
            models=len(parse_snapshot(snapshot)),
            overrides=overrides,
            archives=frozenset(document["archives"]),
            notes=tuple(notes),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(path, f"it is damaged ({error})") from None


def _unreadable(path: Path, reason: str) -> TorchmarError:
    return TorchmarError(
        f"{path}: the models of the last run cannot be read: {reason}", hint="--fresh starts without them"
    )


def _current(models: Mapping[str, Mapping[str, Any]], store: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    """Return the models whose archives exist; for a changed archive, with the options of that archive."""
    current: dict[str, dict[str, Any]] = {}
    for name, versions in models.items():
        for version, saved in versions.items():
            stamp, entry = saved["file"], {key: value for key, value in saved.items() if key != "file"}
            now = _stamp(store / entry["marName"])
            if stamp and not now:
                notes.append(f"{name} {version} is not restored: {entry['marName']} is no longer in {store}")
                continue
            if stamp != now:
                notes.append(f"{name} {version}: {entry['marName']} has changed; the options in it are used")
                entry = {key: value for key, value in entry.items() if key in _OF_REGISTRATION}
            current.setdefault(name, {})[version] = entry
    return current


def _stamp(path: Path) -> list[int]:
    """Return the stamp of a file; empty for an archive outside of the model store, such as a URL."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]
