"""The inputs of a plan: the server's state, the archives and the GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchmar import gpus
from torchmar.deployment import actual, plan, store_index
from torchmar.deployment.context import DeploymentContext
from torchmar.deployment.desired import Deployment
from torchmar.deployment.plan import Plan
from torchmar.deployment.store_index import StoredArchive, StoreIndex


def archives(
    deployment: Deployment, folder: Path, model_store: Path | None
) -> tuple[StoreIndex, dict[tuple[str, str], StoredArchive | None]]:
    """Return the model store's index, and the archive of each listed model and version, if it can be read.

    Args:
        deployment: the desired state.
        folder: folder to which its file names are relative.
        model_store: model store of the server; None: it is not on this machine.
    """
    named: dict[tuple[str, str], StoredArchive | None] = {}
    unnamed: list[tuple[str, str]] = []
    for name, model in deployment.models.items():
        for version in model.versions:
            file = model.version(version).archive
            if file is None:
                unnamed.append((name, version))
            elif "://" not in file:
                paths = [*([model_store / file] if model_store else []), folder / file]
                named[name, version] = next(filter(None, map(store_index.read_archive, paths)), None)
    names = {*deployment.models, *(stored.name for stored in named.values() if stored)}
    index = store_index.read(model_store, names)
    return index, named | {(name, version): _by_name(index, name, version) for name, version in unnamed}


def _by_name(index: StoreIndex, name: str, version: str) -> StoredArchive | None:
    """Return the archive of a version: by the usual file name, by its exact version, or its newest build."""
    builds = index.builds(name, version)
    exact = (build for build in builds if build.version == version)
    return index.archives.get(f"{name}-{version}.mar") or next(exact, None) or next(iter(builds), None)


def make(deployment: Deployment, context: DeploymentContext, gpu_sizes: Sequence[int] | None = None) -> Plan:
    """Read the state of the server and the model store, and compute the plan.

    Args:
        deployment: the desired state.
        context: the server.
        gpu_sizes: memory of each GPU in bytes; default: ``gpus`` of the deployment, otherwise the GPUs of nvidia-smi.

    Raises:
        TorchmarError: the deployment is not possible, or the server cannot be reached.
    """
    index, by_version = archives(deployment, context.folder, context.model_store)
    on_gpus = any(model.version(version).on_gpus for model in deployment.models.values() for version in model.versions)
    if gpu_sizes is None and on_gpus:
        gpu_sizes = deployment.server.gpus or gpus.memory_sizes()
    live = actual.read(context.endpoint)
    live_routes = actual.read_routes(context.endpoint) if deployment.routes is not None else None
    return plan.plan(deployment, live, index, by_version, gpu_sizes or (), context.folder, live_routes)
