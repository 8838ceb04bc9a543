"""torchmar export vertex: files that deploy an archive on Vertex AI."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from torchmar.cli.exporting.files import (
    ForGpus,
    Package,
    copy_package,
    identity,
    platform_image,
    require_folder,
    write,
)
from torchmar.cli.progress import Bar
from torchmar.cli.terminal import err


def vertex(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="The archive.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The folder for model.mar and the rest; made if missing.", show_default=False
        ),
    ],
    package: Package = None,
    gpus: ForGpus = False,
) -> None:
    """Write files that deploy an archive on Vertex AI or Google Distributed Cloud.

    model.mar is the archive, for a model called model, under the name that
    Google's PyTorch containers require. deploy.sh has the gcloud commands: with
    Google's container or, with --package, with an image of torchmar's server.
    """
    from torchmar.archive import Archive
    from torchmar.archive.renaming import copy_archive
    from torchmar.exporting import containers
    from torchmar.exporting.vertex import commands, identifier
    from torchmar.platforms.vertex import FILE_NAME, MODEL_NAME

    with Archive(archive) as opened:
        name, version = identity(opened)
        has_runtime = opened.runtime is not None
    require_folder(output, f"{FILE_NAME} and deploy.sh", make=True)
    with Bar() as bar:
        copied = copy_archive(archive, output / FILE_NAME, name=MODEL_NAME, begin=bar.begin)
    err.print(f"wrote {copied.path}", markup=False)
    texts: dict[Path | None, str] = {
        output / "deploy.sh": commands(name, version, own_image=package is not None, gpus=gpus)
    }
    if package:
        wheel = copy_package(package, output)
        baked_archive = PurePosixPath(FILE_NAME)
        image = replace(
            platform_image(wheel, [archive], gpus=gpus),
            baked=(baked_archive,),
            with_runtime=(baked_archive,) if has_runtime else (),
        )
        texts[output / "Dockerfile"] = containers.vertex_dockerfile(image, identifier(name))
        texts[output / ".dockerignore"] = containers.dockerignore([wheel, FILE_NAME])
    write(texts)
    if not package:
        err.print("--package WHEEL writes a Dockerfile for torchmar's server, too, in place of Google's container")
    err.print(f"deploy it: sh {output / 'deploy.sh'}", markup=False)
