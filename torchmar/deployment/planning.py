"""Collect the inputs of a plan: the server's state, the archives, the GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torchmar import gpus, properties
from torchmar.connection import RUN_FOLDER, Endpoint
from torchmar.deployment import actual, plan, store_index
from torchmar.deployment.desired import Deployment, ServerPlace
from torchmar.deployment.plan import Plan
from torchmar.deployment.store_index import StoredArchive, StoreIndex

CONFIG = properties.FILE_NAME


def server(place: ServerPlace, folder: Path, run_folder: Path | None = None) -> Endpoint:
    """Return the server that a deployment is for.

    Args:
        place: what the deployment says of it.
        folder: what its file names are relative to.
        run_folder: in place of the deployment's.
    """
    config = folder / place.config if place.config else None
    chosen = run_folder or (folder / place.run_folder if place.run_folder else None)
    found = Endpoint.from_run_folder(chosen or RUN_FOLDER)
    if chosen is None and config and config.is_file() and not (RUN_FOLDER / CONFIG).is_file():
        values = properties.read(config)
        found = replace(found, inference=values.get("inference_address"), management=values.get("management_address"))
    return replace(
        found,
        inference=place.inference or found.inference,
        management=place.management or found.management,
        key_file=folder / place.key_file if place.key_file else found.key_file,
    )


def model_store(place: ServerPlace, folder: Path, run_folder: Path | None = None) -> Path | None:
    """Return the server's model store if it is on this machine: the deployment's, or the running server's."""
    if place.model_store:
        return folder / place.model_store
    runs_in = run_folder or (folder / place.run_folder if place.run_folder else RUN_FOLDER)
    for config in (runs_in / CONFIG, folder / place.config if place.config else None):
        if config and config.is_file() and (store := properties.read(config).get("model_store")):
            found = config.parent / store
            return found if found.is_dir() else None
    store_here = folder / "model_store"
    return store_here if store_here.is_dir() else None


def archives(
    deployment: Deployment, folder: Path, store: Path | None
) -> tuple[StoreIndex, dict[tuple[str, str], StoredArchive | None]]:
    """Return the model store, and the archive of every listed version; None where there is none to read."""
    names = set(deployment.models)
    named: dict[tuple[str, str], StoredArchive | None] = {}
    for name, model in deployment.models.items():
        for version in model.versions:
            given = model.version(version).archive
            if given is None or "://" in given:
                continue
            places = [place for place in (store / given if store else None, folder / given) if place]
            found = next((one for one in map(store_index.look, places) if one), None)
            named[name, version] = found
            names |= {found.name} if found else set()
    there = store_index.read(store, names)
    chosen: dict[tuple[str, str], StoredArchive | None] = {}
    for name, model in deployment.models.items():
        for version in model.versions:
            if model.version(version).archive is not None:
                chosen[name, version] = named.get((name, version))
                continue
            usual = there.archives.get(f"{name}-{version}.mar")
            builds = there.builds(name, version)
            exact = [one for one in builds if one.version == version]
            chosen[name, version] = next(iter([*([usual] if usual else []), *exact, *builds]), None)
    return there, chosen


def make(
    deployment: Deployment,
    folder: Path,
    where: Endpoint,
    store: Path | None,
    sizes: Sequence[int] | None = None,
) -> Plan:
    """Ask the server, look into the model store, and plan.

    Args:
        deployment: what should be.
        folder: what its file names are relative to.
        where: the server.
        store: its model store, if it is here.
        sizes: bytes of memory of each GPU; None: as the deployment or nvidia-smi says.

    Raises:
        TorchmarError: it cannot be done, or the server cannot be asked.
    """
    there, chosen = archives(deployment, folder, store)
    on_gpus = any(model.version(one).on_gpus for model in deployment.models.values() for one in model.versions)
    if sizes is None and on_gpus:
        sizes = deployment.server.gpus or gpus.memory_sizes()
    return plan.plan(deployment, actual.read(where), there, chosen, sizes or (), folder)
