"""The ``config.properties`` with which a server starts in the state of a deployment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torchmar import properties
from torchmar.deployment.desired import Deployment
from torchmar.deployment.store_index import StoredArchive, StoreIndex
from torchmar.deployment.target import SETTINGS, Target
from torchmar.errors import TorchmarError
from torchmar.server.config.routes import Route, show


def startup(
    deployment: Deployment,
    archives: Mapping[tuple[str, str], StoredArchive | None],
    index: StoreIndex,
    base: Mapping[str, str],
) -> str:
    """Return the text of a ``config.properties`` with the keys of `startup_values`.

    Raises:
        TorchmarError: for the reasons of `startup_values`.
    """
    return properties.show(startup_values(deployment, archives, index, base))


def startup_values(
    deployment: Deployment,
    archives: Mapping[tuple[str, str], StoredArchive | None],
    index: StoreIndex,
    base: Mapping[str, str],
) -> dict[str, str]:
    """Return the keys of a ``config.properties``: those of ``base``, and the keys with the models.

    The first archive of a model in ``load_models`` becomes its default version. An archive's own configuration
    overrides ``models``, as it does at registration. In ``models``, 0 workers means one per
    processor; therefore, if a version should have none, the models are written as ``model_snapshot``, where 0 means
    none.

    Raises:
        TorchmarError: no archive in the store has the settings that the deployment gives to a version.
    """
    models: dict[str, dict[str, Any]] = {}
    files: list[str] = []
    builds: dict[tuple[str, str], str] = {}
    for name, model in deployment.models.items():
        models[name] = {}
        for version in sorted(model.versions, key=lambda name: name != model.default_version):
            is_default = version == model.default_version
            stored, target = _choose(name, version, deployment, archives, index)
            builds[name, version] = stored.version
            file = stored.path.name
            files.append(file if stored.name == name else f"{name}={file}")
            models[name][stored.version] = {
                "defaultVersion": is_default,
                "marName": file,
                "minWorkers": target.min_workers,
                "maxWorkers": target.max_workers,
                # This JSON needs all keys; a setting without a value gets TorchServe's default.
                **{
                    key: default if target.settings[setting] is None else target.settings[setting]
                    for setting, (key, default) in SETTINGS.items()
                },
            }
    replaced = ("load_models", "models", "model_snapshot")
    keys = {key: value for key, value in base.items() if key not in replaced}
    versions = [version for model in models.values() for version in model.values()]
    if all(version["minWorkers"] for version in versions):
        keys |= {"load_models": ",".join(files), "models": _json(models)}
    else:
        snapshot = {"name": "deployment", "modelCount": len(versions), "models": models}
        keys["model_snapshot"] = _json(snapshot)
    if deployment.routes is not None:
        routes = {
            path: Route(route.model, None if route.version is None else builds[route.model, route.version])
            for path, route in deployment.routes.items()
        }
        keys["torchmar_routes"] = show(routes)
    return keys


def chosen_archives(
    deployment: Deployment, archives: Mapping[tuple[str, str], StoredArchive | None], index: StoreIndex
) -> list[StoredArchive]:
    """Return the archives that a server with `startup_values` loads.

    Raises:
        TorchmarError: no archive in the store has the settings that the deployment gives to a version.
    """
    return [
        _choose(name, version, deployment, archives, index)[0]
        for name, model in deployment.models.items()
        for version in model.versions
    ]


def _choose(
    name: str,
    version: str,
    deployment: Deployment,
    archives: Mapping[tuple[str, str], StoredArchive | None],
    index: StoreIndex,
) -> tuple[StoredArchive, Target]:
    """Return the archive from which a server loads a version with its target; newer builds are preferred."""
    stored = archives.get((name, version))
    if stored is None:
        raise TorchmarError(
            f"there is no archive of {name} {version} in {index.folder or 'a model store on this machine'}"
        )
    state = deployment.models[name].version(version)
    target = Target.of(state, stored, None)
    for archive in (*index.builds(stored.name, version), stored):
        devices = tuple(archive.config.get("deviceIds") or ())
        gpus_fit = not state.on_gpus or (
            bool(devices) and (state.devices is None or set(devices) <= set(state.devices))
        )
        in_store = archive.path.parent.resolve() == (index.folder or archive.path).resolve()
        if gpus_fit and in_store and target.satisfied_by(archive):
            return archive, target
    raise TorchmarError(
        f"no archive in {index.folder} gives {name} {version} as the deployment says", hint="torchmar apply makes it"
    )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
