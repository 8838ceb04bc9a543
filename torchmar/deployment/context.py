"""The server of a deployment: its endpoint, run folder and model store, from options and files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torchmar import properties
from torchmar.connection import RUN_FOLDER, Endpoint
from torchmar.deployment.desired import ServerSection


@dataclass(frozen=True, kw_only=True)
class DeploymentContext:
    """The server of a deployment, and the folder of the deployment's file.

    Attributes:
        endpoint: addresses of the server's APIs, its tokens and certificates.
        run_folder: run folder of the server; it exists only if the server is on this machine.
        model_store: folder of the server's archives; None: it is not on this machine.
        folder: folder to which file names in ``deployment.yaml`` are relative.
    """

    endpoint: Endpoint
    run_folder: Path = RUN_FOLDER
    model_store: Path | None = None
    folder: Path = Path()


def resolve(section: ServerSection, folder: Path, run_folder: Path | None = None) -> DeploymentContext:
    """Return the server of a deployment.

    Args:
        section: section ``server:`` of the deployment.
        folder: folder of the deployment's file.
        run_folder: run folder that replaces that of the deployment.

    Raises:
        PropertiesError: a configuration of the server cannot be read.
    """
    named_folder = run_folder or (folder / section.run_folder if section.run_folder else None)
    return DeploymentContext(
        endpoint=_endpoint(section, folder, named_folder),
        run_folder=named_folder or RUN_FOLDER,
        model_store=_model_store(section, folder, named_folder or RUN_FOLDER),
        folder=folder,
    )


def local_model_store(run_folder: Path | None = None) -> Path | None:
    """Return the model store of the server with a run folder (default: ``.torchmar``), or else ``./model_store``."""
    return _model_store(ServerSection(), Path(), run_folder or RUN_FOLDER)


def _endpoint(section: ServerSection, folder: Path, run_folder: Path | None) -> Endpoint:
    endpoint = Endpoint.from_run_folder(run_folder or RUN_FOLDER)
    config = folder / section.config if section.config else None
    if run_folder is None and config and config.is_file() and not (RUN_FOLDER / properties.FILE_NAME).is_file():
        values = properties.read(config)
        endpoint = replace(
            endpoint, inference=values.get("inference_address"), management=values.get("management_address")
        )
    return replace(
        endpoint,
        inference=section.inference or endpoint.inference,
        management=section.management or endpoint.management,
        key_file=folder / section.key_file if section.key_file else endpoint.key_file,
    )


def _model_store(section: ServerSection, folder: Path, run_folder: Path) -> Path | None:
    """Return the deployment's model store, else that of the running server, else the one beside the deployment."""
    if section.model_store:
        return folder / section.model_store
    for config in (run_folder / properties.FILE_NAME, folder / section.config if section.config else None):
        if config and config.is_file() and (store_name := properties.read(config).get("model_store")):
            store = config.parent / store_name
            return store if store.is_dir() else None
    default = folder / "model_store"
    return default if default.is_dir() else None
