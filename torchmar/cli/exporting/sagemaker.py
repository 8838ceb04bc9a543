"""torchmar export sagemaker: files that deploy archives on SageMaker."""

from __future__ import annotations

from pathlib import Path
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


def sagemaker(
    archives: Annotated[
        list[Path],
        typer.Argument(metavar="ARCHIVE", help="The archive, or those of a multi-model endpoint.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The folder for model.tar.gz and the rest; made if missing.", show_default=False
        ),
    ],
    package: Package = None,
    gpus: ForGpus = False,
) -> None:
    """Write files that deploy an archive, or several behind one endpoint, on SageMaker.

    model.tar.gz has the content of the archive; with several archives, each is
    NAME.tar.gz. deploy.sh has the aws commands, which use the image in IMAGE or,
    with --package, an image of torchmar's server.
    """
    from torchmar.archive import Archive, file_digest
    from torchmar.archive.renaming import copy_archive
    from torchmar.errors import TorchmarError
    from torchmar.exporting import containers
    from torchmar.exporting.sagemaker import FILE_NAME, commands, file_name, identifier

    names, version = [], ""
    for path in archives:
        with Archive(path) as opened:
            name, version = identity(opened)
            names.append(name)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise TorchmarError(
            f"two archives are of the model {twice}", hint="an endpoint has one version of a model; name one archive"
        )
    require_folder(output, f"{FILE_NAME} and deploy.sh", make=True)
    content = ""
    for path, name in zip(archives, names, strict=True):
        file = output / (file_name(name) if len(names) > 1 else FILE_NAME)
        with Bar() as bar:
            copied = copy_archive(path, file, begin=bar.begin)
        content += copied.digest
        err.print(f"wrote {copied.path}", markup=False)
    texts: dict[Path | None, str] = {}
    if package:
        wheel = copy_package(package, output)
        content += file_digest.of(output / wheel)
        image = platform_image(wheel, archives, gpus=gpus)
        title = identifier("models" if len(names) > 1 else names[0]).lower()
        texts[output / "Dockerfile"] = containers.sagemaker_dockerfile(image, title)
        texts[output / ".dockerignore"] = containers.dockerignore([wheel])
    script = commands(names, version, content=content, own_image=package is not None, gpus=gpus)
    write({output / "deploy.sh": script, **texts})
    if not package:
        err.print("--package WHEEL writes a Dockerfile for torchmar's server, too, and deploy.sh builds its image")
    err.print(f"deploy {'them' if len(names) > 1 else 'it'}: sh {output / 'deploy.sh'}", markup=False)
