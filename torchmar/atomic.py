"""Files and folders that replace others atomically when they are complete."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from torchmar.errors import TorchmarError


def temporary_path(destination: Path) -> Path:
    """Return a hidden, unique path in the folder of ``destination``.

    A rename within a folder is atomic, and unique names keep writers apart.
    """
    return destination.with_name(f".{destination.name}.{os.urandom(4).hex()}.part")


def write_text(text: str, path: Path) -> None:
    """Write a text to a file; if the path is a link, to the file that it leads to.

    Raises:
        TorchmarError: the file cannot be written, and is unchanged.
    """
    part = temporary_path(path.resolve())
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path.resolve())
    except OSError as error:
        part.unlink(missing_ok=True)
        raise TorchmarError(f"{path} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes ``destination`` if the block ends without an error.

    Raises:
        TorchmarError: the destination exists, or cannot be written.
    """
    if destination.exists() or destination.is_symlink():
        raise TorchmarError(f"{destination} exists already", hint="choose another name, or remove the folder")
    part = temporary_path(destination)
    new_parents = [parent for parent in destination.parents if not parent.exists()]
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(destination)
    except OSError as error:
        raise TorchmarError(f"{error.filename or destination}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in new_parents:
                parent.rmdir()  # only if it is empty
