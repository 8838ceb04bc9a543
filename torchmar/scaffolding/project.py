"""A new project: the folders around archives, with one archive in them."""

from __future__ import annotations

from pathlib import Path

import torchmar
from torchmar.errors import TorchmarError
from torchmar.scaffolding import archive
from torchmar.scaffolding.folder import write
from torchmar.scaffolding.templates import render


def create_project(folder: Path, name: str) -> tuple[str, ...]:
    """Create the folder of a project with one custom archive, complete or not at all; return its files.

    Args:
        folder: the new folder.
        name: name of the archive.

    Raises:
        TorchmarError: the name is invalid, or the folder exists or cannot be written.
    """
    archive.check_name(name)
    if folder.exists():
        raise TorchmarError(
            f"{folder} exists already",
            hint=f"name a new folder for the project; torchmar new {name} alone adds an archive to this one",
        )
    files = {
        **{f"archives/{name}/{path}": content for path, content in archive.custom(name).items()},
        "model_store/.gitkeep": b"",
        "config.properties": render("project_config.properties"),
        "scripts/test": render("project_test"),
        "tests/test_archives.py": render("project_tests.py"),
        "requirements.txt": f"torchmar[server]=={torchmar.__version__}\npytest\n".encode(),
        "README.md": render("project_readme.md", title=folder.resolve().name, name=name),
        ".gitignore": render("project_gitignore"),
    }
    write(folder, files)
    return tuple(sorted(files))
