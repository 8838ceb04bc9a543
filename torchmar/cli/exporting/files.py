"""The common parts of the commands of ``torchmar export``: configuration, model store, and files to write."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar import atomic
from torchmar.cli.terminal import err
from torchmar.errors import TorchmarError
from torchmar.package_versions import installed_version

if TYPE_CHECKING:
    from torchmar.archive import Archive
    from torchmar.engines import EngineName
    from torchmar.exporting.image import Image
    from torchmar.properties import Properties

Config = Annotated[Path, typer.Option(help="The server's configuration.")]
Package = Annotated[
    Path | None,
    typer.Option(metavar="WHEEL", help="A wheel of torchmar, for an image of its server.", show_default=False),
]
OutputFile = Annotated[
    Path | None, typer.Option("--output", "-o", help="The file to write; default: stdout.", show_default=False)
]
ForGpus = Annotated[bool, typer.Option("--gpus", help="For machines with a GPU.")]


def store(config: Properties, folder: Path | None) -> Path:
    """Return the model store: the given one, or that of the configuration."""
    return folder or Path(config.get("model_store") or "model_store")


def write(texts: Mapping[Path | None, str]) -> None:
    """Write each text to its file, atomically, and print its name; the key None is stdout.

    Raises:
        TorchmarError: a file cannot be written.
    """
    for file, text in texts.items():
        if file is None:
            typer.echo(text, nl=False)
            continue
        atomic.write_text(text, file)
        err.print(f"wrote {file}", markup=False)


def require_folder(folder: Path, content: str, *, make: bool = False) -> None:
    """Raise TorchmarError if ``folder`` is not a folder; ``content`` names the files for it.

    Args:
        folder: the folder.
        content: names of the files.
        make: whether to make the folder if it does not exist.
    """
    if make and not folder.exists():
        make_folder(folder)
    if not folder.is_dir():
        raise TorchmarError(f"{folder} is not a folder", hint=f"{content} are written to it")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, unless it exists.

    Raises:
        TorchmarError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TorchmarError(f"{folder} cannot be made: {error.strerror}") from None


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, atomically, unless source and target are the same.

    Raises:
        TorchmarError: the source cannot be read, or the target cannot be written.
    """
    if target.exists() and target.samefile(source):
        return
    part = atomic.temporary_path(target)
    try:
        shutil.copyfile(source, part)
        part.replace(target)
    except OSError as error:
        raise TorchmarError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def identity(archive: Archive) -> tuple[str, str]:
    """Return the name and the version of an archive, for scripts, names of files and comments.

    Raises:
        TorchmarError: the version has characters with a special meaning in these.
    """
    from torchmar.recipe import VERSION_PATTERN

    manifest = archive.manifest
    if not re.fullmatch(VERSION_PATTERN, manifest.version):
        raise TorchmarError(
            f"{archive.path}: the version {manifest.version!r} cannot be part of a file's name or of a URL",
            hint="letters, digits, '.', '_', '-' and '+', a letter or digit first",
        )
    return manifest.name, manifest.version


def extras_of(path: Path, engine: EngineName) -> tuple[str, ...]:
    """Return the extras of torchmar that an archive needs: for its weights and texts, and for its environment."""
    from torchmar.archive import Archive

    with Archive(path) as archive:
        names = [member.name for member in archive.members]
        weights = archive.manifest.model.serialized_file or ""
        runtime = archive.runtime if engine != "torchserve" else None
    if runtime and not runtime.server_packages:
        return ("venv",)  # the other packages are in its lock file
    extras = {
        "onnx": any(name.endswith(".onnx") for name in names),
        "openvino": weights.endswith(".xml"),
        "text": "tokenizer.json" in names,
        "venv": runtime is not None,
    }
    return tuple(extra for extra, applies in extras.items() if applies)


def versions_here() -> tuple[str, str]:
    """Return the versions of Python and of torch of this environment, for an image; empty: torch is not installed."""
    return f"{sys.version_info.major}.{sys.version_info.minor}", installed_version("torch").partition("+")[0]


def platform_image(wheel: str, archives: Sequence[Path], *, gpus: bool) -> Image:
    """Return the image of a server for archives that the platform provides, with the versions of this environment.

    Args:
        wheel: wheel of torchmar in the folder of the build.
        archives: archives whose extras are installed.
        gpus: whether to install torch with CUDA.
    """
    from torchmar.exporting.image import Image

    python, torch = versions_here()
    return Image(
        config=None,
        model_store=PurePosixPath(),
        package=wheel,
        extras=tuple(dict.fromkeys(extra for path in archives for extra in extras_of(path, "builtin"))),
        gpus=gpus,
        python=python,
        torch=torch,
    )


def copy_package(wheel: Path, folder: Path) -> str:
    """Copy a wheel to the folder of a build; return its name in the folder.

    Raises:
        TorchmarError: the file is no wheel, or cannot be copied.
    """
    if wheel.suffix != ".whl" or not wheel.is_file():
        raise TorchmarError(f"{wheel} is no wheel", hint="pip wheel --no-deps -w . SOURCE makes one")
    copy_file(wheel, folder / wheel.name)
    return wheel.name
