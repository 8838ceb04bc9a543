"""The command that creates archives and projects."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from torchmar.cli.terminal import err, out


class KindName(str, Enum):
    """The kinds of archives that `new` creates."""

    custom = "custom"
    tensors = "tensors"
    image_classifier = "image-classifier"
    text = "text"
    table = "table"


def new(
    name: Annotated[str, typer.Argument(help="The model's name, also the name of its folder.", show_default=False)],
    weights: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="The model: ONNX, OpenVINO, torch.export, TorchScript, Keras or TensorFlow (SavedModel folder, "
            ".tflite). It is copied, and loaded to read its inputs.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        KindName | None,
        typer.Option(
            help="The kind of the handler; default: by the inputs of the model, or custom without --from.",
            show_default=False,
        ),
    ] = None,
    archives: Annotated[Path, typer.Option(help="The folder of recipes.")] = Path("archives"),
    project: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Create a project there: archives/NAME, config.properties, model_store, scripts, tests.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Create archives/NAME: a recipe that builds, a handler, a sample and a test.

    With --from, the recipe is for an existing model; without it, the handler contains an example to replace.
    """
    from torchmar import scaffolding

    if project is not None:
        if weights is not None or kind not in (None, KindName.custom):
            raise typer.BadParameter("a project begins with a custom archive; add others in it", param_hint="--project")
        files = scaffolding.create_project(project, name)
        _show(project, files)
        _show_next(f"cd {project}", "scripts/test", "torchmar serve")
        return
    created = scaffolding.create(name, archives, weights=weights, kind=kind.value if kind else None)
    _show(created.folder, created.files)
    for note in created.notes:
        err.print(f"note: {note}", markup=False)
    mar = f"model_store/{name}-1.0.mar"
    _show_next(f"torchmar build {created.folder}", f"torchmar check --run {mar}", f"pytest {created.folder}")


def _show(folder: Path, files: tuple[str, ...]) -> None:
    out.print(f"created {folder}", markup=False)
    for name in files:
        out.print(f"  {name}", markup=False)


def _show_next(*commands: str) -> None:
    out.print("next:")
    for command in commands:
        out.print(f"  {command}", markup=False)
