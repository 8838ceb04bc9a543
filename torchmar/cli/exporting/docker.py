"""torchmar export docker: a Dockerfile for a server."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar.cli.exporting.files import extras_of, require_folder, store, versions_here, write
from torchmar.cli.options import Config, Engine, ModelStore
from torchmar.cli.terminal import err
from torchmar.engines import DEFAULT
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.exporting.image import Image
    from torchmar.properties import Properties


def docker(
    config: Config = None,
    model_store: ModelStore = None,
    mount: Annotated[bool, typer.Option("--mount", help="Omit the archives from the image; mount them.")] = False,
    bake: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Put only the newest archive of this model into the image, with the extras that it needs. "
            "May be repeated.",
            show_default=False,
        ),
    ] = None,
    package: Annotated[
        Path | None,
        typer.Option(help="A wheel of torchmar; default: its source, if this is its folder.", show_default=False),
    ] = None,
    extras: Annotated[
        str, typer.Option(help="Extras of torchmar that the archives need: onnx,text.", show_default=False)
    ] = "",
    packages: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="PACKAGE",
            help="A further package that handlers import, such as transformers. May be repeated.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="Include CUDA; the image is 5 GB larger.")] = False,
    engine: Engine = DEFAULT,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The folder for Dockerfile and .dockerignore; default: stdout.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a Dockerfile, and with --output also its .dockerignore."""
    from torchmar import properties
    from torchmar.exporting.docker import dockerfile, dockerignore
    from torchmar.exporting.image import Image

    if bake and mount:
        raise typer.BadParameter("archives are put into the image or mounted, not both", param_hint="--bake")
    configuration = properties.read_or_default(config)
    if package is None and not _is_our_source():
        raise TorchmarError(
            "this folder is not the source of torchmar, which the image needs",
            hint="pip wheel --no-deps -w . SOURCE makes a wheel; name it with --package torchmar-....whl",
        )
    folder = store(configuration, model_store)
    baked = {path: extras_of(path, engine) for path in _newest(folder, bake or ())}
    extra_names = [name.strip() for name in extras.split(",") if name.strip()]
    python, torch = versions_here()
    image = Image(
        config=_inside(configuration.file) if configuration.file else None,
        model_store=_inside(folder),
        mount=mount,
        baked=tuple(map(_inside, baked)),
        with_runtime=tuple(_inside(path) for path, path_extras in baked.items() if "venv" in path_extras),
        package=str(_inside(package)) if package else "",
        extras=tuple(dict.fromkeys([*extra_names, *itertools.chain(*baked.values())])),
        packages=tuple(packages or ()),
        gpus=gpus,
        engine=engine,
        python=python,
        torch=torch,
    )
    text = dockerfile(image, configuration)
    if output is None:
        write({None: text})
        err.print("--output . writes it to a file, with a .dockerignore that keeps tokens out of the image")
        return
    require_folder(output, "Dockerfile and .dockerignore")
    _print_notes(image, configuration)
    write({output / "Dockerfile": text, output / ".dockerignore": dockerignore(image)})


def _print_notes(image: Image, config: Properties) -> None:
    """Print the files that are missing for a build of the image, and a note if tokens are off."""
    if not config.file:
        err.print("there is no config.properties: the server in the image has TorchServe's defaults")
    for path in (image.package, *(() if image.mount else (str(image.model_store),))):
        if path and not Path(path).exists():
            err.print(f"{path} does not exist yet; docker build needs it", markup=False)
    if config.flag("disable_token_authorization"):
        err.print(
            f"{config.file} turns tokens off: every client that reaches the port can use the models", markup=False
        )


def _newest(store: Path, names: Sequence[str]) -> list[Path]:
    """Return the newest archive of each model, by name."""
    from torchmar.archive import store as archives

    return [archives.find(store, [name])[-1] for name in dict.fromkeys(names)]


def _inside(path: Path) -> PurePosixPath:
    """Return a path relative to this folder, if it is inside the folder."""
    absolute, cwd = path.absolute(), Path.cwd()
    return PurePosixPath(absolute.relative_to(cwd) if absolute.is_relative_to(cwd) else absolute)


def _is_our_source() -> bool:
    project = Path("pyproject.toml")
    return project.is_file() and 'name = "torchmar"\n' in project.read_text(encoding="utf-8")
