"""torchmar export ray: a folder that Ray Serve runs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from torchmar.cli.exporting.files import copy_file, extras_of, identity, make_folder, write
from torchmar.cli.terminal import err


def ray(
    archives: Annotated[
        list[Path] | None,
        typer.Argument(metavar="ARCHIVE", help="The archives; of a model's versions, the last is the default."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="The folder to write; it is created.", show_default=False),
    ] = None,
    cpus: Annotated[float, typer.Option(min=0.0, help="The cores that Ray reserves for a replica.")] = 1.0,
    gpus: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="The GPUs of a replica, such as 0.5; default: 1 if its archive asks for GPUs.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Only check a config.yaml that you have edited, for keys that Ray would ignore.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a folder that Ray Serve runs, also in AWS's images for it."""
    from torchmar.archive import Archive
    from torchmar.exporting import ray as exporting
    from torchmar.exporting import ray_config

    if check is not None:
        if archives or output is not None:
            raise typer.BadParameter("it takes no archives and writes nothing", param_hint="--check")
        ray_config.read(check)
        err.print(f"{check} is right", markup=False)
        return
    if not archives:
        raise typer.BadParameter("name an archive", param_hint="ARCHIVE")
    if output is None:
        raise typer.BadParameter("name a folder", param_hint="--output")
    with ExitStack() as stack:
        opened = [stack.enter_context(Archive(path)) for path in archives]
        for archive in opened:
            identity(archive)
        models = [exporting.model(archive, cpus=cpus, gpus=gpus) for archive in opened]
        extras = ["worker", *(extra for path in archives for extra in extras_of(path, "torchserve"))]
        texts: dict[Path | None, str] = {
            output / "config.yaml": exporting.config(models),
            output / "deployment.py": exporting.deployment(),
            output / "code" / "requirements.txt": exporting.requirements(opened, extras),
        }
    ray_config.parse(texts[output / "config.yaml"])
    make_folder(output / "code")
    make_folder(output / exporting.MODELS)
    for path, model in zip(archives, models, strict=True):
        target = output / exporting.MODELS / model.file
        copy_file(path, target)
        err.print(f"wrote {target}", markup=False)
    write(texts)
