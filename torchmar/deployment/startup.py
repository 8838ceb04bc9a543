"""The ``config.properties`` with which a server starts in a deployment's state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torchmar import properties
from torchmar.deployment.desired import Deployment
from torchmar.deployment.store_index import StoredArchive, StoreIndex
from torchmar.deployment.target import SETTINGS, Target
from torchmar.errors import TorchmarError


def startup(
    deployment: Deployment,
    archives: Mapping[tuple[str, str], StoredArchive | None],
    index: StoreIndex,
    base: Mapping[str, str],
) -> str:
    """Return the text of a ``config.properties``: the keys of ``base``, and the models.

    The first of a model's archives in ``load_models`` becomes its default version. What an
    archive's own configuration says goes before ``models``, as at registration. To ``models`` no
    workers means as many as there are processors; where a version is to have none, the same is
    written as ``model_snapshot``, which takes it by the word.

    Raises:
        TorchmarError: no archive in the store gives what the deployment says.
    """
    models: dict[str, dict[str, Any]] = {}
    files: list[str] = []
    for name, model in deployment.models.items():
        models[name] = {}
        for version in sorted(model.versions, key=lambda one: one != model.default_version):
            is_default = version == model.default_version
            stored, target = _chosen(name, version, deployment, archives, index)
            file = stored.path.name
            files.append(file if stored.name == name else f"{name}={file}")
            models[name][stored.version] = {
                "defaultVersion": is_default,
                "marName": file,
                "minWorkers": target.min_workers,
                "maxWorkers": target.max_workers,
                # What nobody says the server chooses, but in this JSON it wants all of them.
                **{
                    key: default if target.settings[setting] is None else target.settings[setting]
                    for setting, (key, default) in SETTINGS.items()
                },
            }
    ours = ("load_models", "models", "model_snapshot")
    keys = {key: value for key, value in base.items() if key not in ours}
    versions = [one for model in models.values() for one in model.values()]
    if all(one["minWorkers"] for one in versions):
        keys |= {"load_models": ",".join(files), "models": _json(models)}
    else:
        snapshot = {"name": "deployment", "modelCount": len(versions), "models": models}
        keys["model_snapshot"] = _json(snapshot)
    return properties.show(keys)


def _chosen(
    name: str,
    version: str,
    deployment: Deployment,
    archives: Mapping[tuple[str, str], StoredArchive | None],
    index: StoreIndex,
) -> tuple[StoredArchive, Target]:
    """Return the archive that gives a version when a server loads it, the newest build first."""
    stored = archives.get((name, version))
    if stored is None:
        raise TorchmarError(f"there is no archive of {name} {version} in {index.folder or 'a model store here'}")
    state = deployment.models[name].version(version)
    target = Target.of(state, stored, None)
    for one in (*index.builds(stored.name, version), stored):
        devices = tuple(one.config.get("deviceIds") or ())
        on_right = not state.on_gpus or (
            bool(devices) and (state.devices is None or set(devices) <= set(state.devices))
        )
        if on_right and target.comes_of(one) and one.path.parent.resolve() == (index.folder or one.path).resolve():
            return one, target
    raise TorchmarError(
        f"no archive in {index.folder} gives {name} {version} as the deployment says", hint="torchmar apply makes it"
    )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
