"""A package of another tool as the folder of a recipe."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from torchmar import handler_names, recipe
from torchmar.archive.layout import MAX_MEMBERS
from torchmar.errors import TorchmarError
from torchmar.manifest import NAME_PATTERN

#: Names of folders and files that tools and operating systems create beside the user's.
_LEFT_OUT = ("__pycache__", "__MACOSX", ".DS_Store", ".ipynb_checkpoints", ".git")
_TAKEN = (recipe.FILE_NAME, handler_names.CARRIED_PACKAGE, "MAR-INF", "model-config.yaml")


@dataclass(frozen=True)
class Imported:
    """The result of an import.

    Attributes:
        folder: the folder with the recipe.
        notes: changes that the import made, and steps that remain for the user; one sentence each.
    """

    folder: Path
    notes: tuple[str, ...] = ()


def model_name(option: str | None, default: str) -> str:
    """Return the name of a model: the given name, or the characters of ``default`` that a URL may contain.

    Raises:
        TorchmarError: the name cannot be a model's.
    """
    name = option if option is not None else re.sub(r"[^A-Za-z0-9_\-.]+", "-", default).lstrip("_-.")
    if not re.fullmatch(NAME_PATTERN, name):
        raise TorchmarError(
            f"{name!r} cannot be a model's name" if name else f"no name can be made of {default!r}",
            hint="--name NAME: letters, digits, '.', '_' and '-', a letter or digit first",
        )
    return name


def copy(source: Path, folder: Path, *left_out: str) -> None:
    """Copy the content of a folder to another, which exists; links are replaced by their targets.

    Args:
        source: the folder.
        folder: folder that receives the content.
        left_out: names that are not copied.

    Raises:
        TorchmarError: a file cannot be read, or is a device or a pipe; a link leads to a folder that contains it; or
            there are more files than in any package.
    """
    _check_files(source)
    try:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*left_out))
    except shutil.Error as error:
        file, _, reason = error.args[0][0]
        raise TorchmarError(f"{file} cannot be copied: {reason}") from None


def _check_files(source: Path) -> None:
    """Raise TorchmarError for files and links that a copy of a folder would read without end."""
    count = 0
    for folder, names, files in os.walk(source, followlinks=True):
        parent = Path(folder).resolve()
        for name in names:
            if Path(folder, name).is_symlink() and Path(folder, name).resolve() in (parent, *parent.parents):
                raise TorchmarError(f"{folder}/{name} is a link to a folder that it is in", hint="remove it")
        for name in files:
            file = Path(folder, name)
            if file.exists() and not file.is_file():
                raise TorchmarError(f"{file} is a device, a pipe or a socket", hint="remove it")
        count += len(files)
        if count > MAX_MEMBERS:
            raise TorchmarError(
                f"{source} has more than {MAX_MEMBERS} files", hint="name the folder of the model alone"
            )


def clean(folder: Path) -> None:
    """Remove files of tools and operating systems from a folder, such as ``__pycache__`` and ``._model.pth``."""
    for path in sorted(folder.rglob("*")):
        if path.name in _LEFT_OUT or path.name.startswith("._"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def entries(folder: Path, source: Path) -> dict[str, str]:
    """Return ``files`` of a recipe: all files and folders at the top level of ``folder``.

    Raises:
        TorchmarError: ``source``, which was extracted there, has a top-level name that archives use themselves.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file() or any(path.iterdir()))
    if clash := next((name for name in names if name in _TAKEN or name.upper() == "MAR-INF"), None):
        raise TorchmarError(f"{source} has {clash} at its top, a name that archives use themselves", hint="rename it")
    return {name: name for name in names}


def write_recipe(document: Mapping[str, Any], folder: Path, source: Path) -> None:
    """Write ``archive.yaml`` to ``folder``, which has the files that it names; keys without a value are omitted.

    Raises:
        RecipeError: the document is no valid recipe.
    """
    filled = {key: value for key, value in document.items() if value}
    text = f"# Made of {source.name} by torchmar import.\n" + yaml.safe_dump(
        filled, sort_keys=False, allow_unicode=True
    )
    recipe.parse(text, f"the recipe of {source}", folder)
    (folder / recipe.FILE_NAME).write_text(text, encoding="utf-8")
