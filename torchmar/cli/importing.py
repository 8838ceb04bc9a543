"""The command that turns archives, packages of other tools and installations of TorchServe into recipes and files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.cli.terminal import err, out

if TYPE_CHECKING:
    from torchmar.importing.package import Imported

_PACKAGES = "Packages of SageMaker and MLflow"
_INSTALLATION = "Of TorchServe"
_FIRST = "1.0"  # the version of a package, which contains none


def import_(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="ARCHIVE", help="A .mar, or a model.tar.gz of SageMaker.", show_default=False),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="The folder in which the folder NAME is created; default: archives. With --torchserve: the folder "
            "for the files; default: the current one.",
            show_default=False,
        ),
    ] = None,
    mlflow: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Import a model of MLflow's pytorch flavour: the folder with MLmodel.",
            show_default=False,
            rich_help_panel=_PACKAGES,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="The model's name; default: that of the file or folder.",
            show_default=False,
            rich_help_panel=_PACKAGES,
        ),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(help="The model's version; default: 1.0.", show_default=False, rich_help_panel=_PACKAGES),
    ] = None,
    program: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The script with model_fn and the other functions; default: inference.py.",
            envvar="SAGEMAKER_PROGRAM",
            show_default=False,
            rich_help_panel=_PACKAGES,
        ),
    ] = None,
    torchserve: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG",
            help="Import an installation: its config.properties, a snapshot, or the folder that TorchServe was started "
            "in. Writes deployment.yaml and config.properties.",
            show_default=False,
            rich_help_panel=_INSTALLATION,
        ),
    ] = None,
    model_store: Annotated[
        Path | None,
        typer.Option(
            help="The model store; default: the configuration's.", show_default=False, rich_help_panel=_INSTALLATION
        ),
    ] = None,
    no_snapshots: Annotated[
        bool,
        typer.Option(
            "--no-config-snapshots",
            "--ncs",
            help="Import the models of config.properties, and not those of the last snapshot in logs/config.",
            rich_help_panel=_INSTALLATION,
        ),
    ] = False,
) -> None:
    """Turn an archive, a package of another tool or an installation into files for torchmar.

    An archive, a SageMaker package and an MLflow model become a folder with a
    recipe, from which torchmar build makes an archive.

    torchmar import resnet-18.mar
    torchmar import model.tar.gz --name resnet
    torchmar import --mlflow mlruns/0/models/m-1f2e/artifacts --name resnet
    torchmar import --torchserve /srv/torchserve
    """
    sources = [source for source in (path, mlflow, torchserve) if source is not None]
    if len(sources) != 1:
        raise typer.BadParameter(
            "name one: an archive, or a package, or --mlflow, or --torchserve", param_hint="ARCHIVE"
        )
    if torchserve is not None:
        if name is not None or version is not None:
            raise typer.BadParameter("the models of an installation have their own", param_hint="--name, --version")
        _import_installation(torchserve, to or Path(), model_store, use_snapshots=not no_snapshots)
        return
    if model_store is not None or no_snapshots:
        raise typer.BadParameter("needs --torchserve", param_hint="--model-store, --no-config-snapshots")
    folder = to or Path("archives")
    if mlflow is not None:
        from torchmar.importing import mlflow as mlflow_importing

        _show(mlflow_importing.import_model(mlflow, folder, name=name, version=version or _FIRST))
    elif path is not None:
        _import_file(path, folder, name, version, program)


def _import_file(path: Path, to: Path, name: str | None, version: str | None, program: str | None) -> None:
    from torchmar import recipe
    from torchmar.archive import import_archive
    from torchmar.errors import TorchmarError
    from torchmar.importing import sagemaker

    if (path / "MLmodel").is_file():
        raise TorchmarError(f"{path} is a model of MLflow", hint=f"torchmar import --mlflow {path}")
    if recipe.is_recipe(path):
        raise TorchmarError(f"{path} is a recipe, or the folder of one, already", hint=f"torchmar build {path}")
    with sagemaker.open_package(path) or contextlib.nullcontext() as opened:
        if opened or sagemaker.is_package_folder(path):
            _show(
                sagemaker.import_package(path, to, opened=opened, name=name, version=version or _FIRST, program=program)
            )
            return
    if name is not None or version is not None:
        raise typer.BadParameter("an archive has a name and a version of its own", param_hint="--name, --version")
    folder, lost = import_archive(path, to)
    for entry in lost:
        err.print(f"[yellow]left out:[/] {escape(entry)}: a recipe has no key for it")
    _next(folder, "again")


def _show(imported: Imported) -> None:
    for note in imported.notes:
        err.print(f"[yellow]note:[/] {escape(note)}")
    _next(imported.folder, "")


def _next(folder: Path, suffix: str) -> None:
    out.print(f"{folder}/archive.yaml  torchmar build {folder} builds it {suffix}".rstrip(), markup=False)


def _import_installation(config: Path, to: Path, model_store: Path | None, *, use_snapshots: bool) -> None:
    from torchmar.importing import torchserve

    with err.status("checking the archives"):
        installation = torchserve.read(config, model_store, use_snapshots=use_snapshots)
        imported = torchserve.import_installation(installation, to)
    out.print(f"read {installation.source}, and {installation.model_store}", markup=False)
    for name, versions in imported.models.items():
        out.print(f"  {name}  {', '.join(versions)}", markup=False)
    if not imported.models:
        out.print("  no models: TorchServe starts without any", markup=False)
    if imported.differences:
        out.print("\nwhat differs:")
    for difference in imported.differences:
        mark = "[red]![/]" if difference.blocks else "[yellow]~[/]"
        reference = f" ({difference.id})" if difference.id else ""
        out.print(f"  {mark} [bold]{escape(difference.place)}[/]: {escape(difference.what)}{reference}")
    out.print("\ndocs/differences.md lists what else differs between the servers")
    out.print(f"wrote {imported.deployment} and {imported.config}", markup=False)
    out.print(f"torchmar serve --config {imported.config} serves these models", markup=False)
    out.print(f"torchmar plan {imported.deployment} shows how a server differs from them", markup=False)
