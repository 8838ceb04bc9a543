"""TorchServe's snapshots: configuration and registered models in a file that a server can start from.

The format is that of TorchServe 0.12.0: a properties file, whose ``model_snapshot`` is JSON. A version also has
``handler`` and ``digest`` if its registration has them, and ``labels`` if it has any. Routes are
``torchmar_routes``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from torchmar import properties
from torchmar.archive import file_digest
from torchmar.atomic import temporary_path
from torchmar.server.config import routes
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.models.registry import Registry, Version
from torchmar.server.telemetry import logs

Kind = Literal["startup", "snapshot", "shutdown"]
_SUFFIX = ".cfg"
_MAX_SNAPSHOTS = 100  # limit for a server; TorchServe never removes snapshots
# Keys that torchmar serve only sets for the running server.
_OMITTED_KEYS = ("torchmar_envvars_read", "torchmar_snapshots")


class Snapshots:
    """Writes a snapshot after every change of the registered models.

    Args:
        folder: folder for the files; made when the first one is written.
        config: ``config.properties`` that the server was started with.
        registry: the models.
    """

    def __init__(self, folder: Path, config: Path, registry: Registry) -> None:
        self._folder, self._config, self._registry = folder, config, registry
        self._written: list[Path] = []

    def save(self, kind: Kind) -> None:
        """Write a snapshot; if the folder is not writable, log a warning."""
        now = datetime.now()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{now:%Y%m%d%H%M%S}{now.microsecond // 1000:03}-{kind}{_SUFFIX}"
            values = dict(properties.read(self._config).values)
            for key in _OMITTED_KEYS:
                values.pop(key, None)
            if by_path := self._registry.routes.by_path:
                values["torchmar_routes"] = routes.show(by_path)
            else:
                values.pop("torchmar_routes", None)
            values["model_snapshot"] = json.dumps(document(self._registry, path.name), indent=2)
            part = temporary_path(path)
            part.write_text(properties.show(values), encoding="utf-8")
            part.replace(path)
            self._written.append(path)
            while len(self._written) > _MAX_SNAPSHOTS:
                self._written.pop(0).unlink(missing_ok=True)
        except OSError as error:
            logs.SERVER.warning("no snapshot is written: %s: %s", self._folder, error.strerror or error)


def document(registry: Registry, name: str) -> dict[str, Any]:
    """Return a snapshot in TorchServe's format; it includes models that could not be loaded."""
    models: dict[str, dict[str, Any]] = {}
    for model in registry.models.values():
        for version in model.versions.values():
            labels = [label for label, labelled in model.labels.items() if labelled == version.version]
            entry = _entry(version, labels, default=model.default == version.version)
            models.setdefault(model.name, {})[version.version] = entry
    startup = registry.startup
    missing = {model.title: model for model in startup.pending}
    missing |= {title: failure.model for title, failure in startup.failures.items()}
    for title, absent in missing.items():
        versions = models.setdefault(title, {})
        versions.setdefault(absent.version or "1.0", _missing(absent, default=absent.default or not versions))
    count = sum(map(len, models.values()))
    return {"name": name, "modelCount": count, "created": int(time.time() * 1000), "models": models}


def latest(folder: Path) -> Path | None:
    """Return the newest snapshot in a folder, as TorchServe would choose it; None: there is none."""
    snapshots = [path for path in folder.glob(f"*{_SUFFIX}") if path.is_file()]
    return max(snapshots, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def _entry(version: Version, labels: list[str], *, default: bool) -> Mapping[str, Any]:
    options, pool = version.serving.pool, version.pool
    entry: dict[str, Any] = {
        "defaultVersion": default,
        "marName": version.url,
        "minWorkers": pool.min_workers,
        "maxWorkers": pool.max_workers,
        "batchSize": options.batch_size,
        "maxBatchDelay": int(options.max_batch_delay),
        "responseTimeout": int(options.response_timeout),
        "startupTimeout": int(options.startup_timeout),
        "runtimeType": version.serving.runtime,
    }
    if version.archive.digest:
        entry["digest"] = file_digest.show(version.archive.digest)
    if version.handler:
        entry["handler"] = version.handler
    if labels:
        entry["labels"] = labels
    return entry


def _missing(model: StartupModel, *, default: bool) -> Mapping[str, Any]:
    digest = {"digest": file_digest.show(model.digest)} if model.digest else {}
    return {"defaultVersion": default, "marName": model.url, **digest, **model.state}
