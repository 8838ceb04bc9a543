"""An archive as a folder (``no-archive``)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

from torchmar.archive.layout import MAX_MEMBERS, Entry, Flaw, kind_of_mode
from torchmar.errors import ArchiveError


def archive_folder(path: Path) -> Path:
    """Return the folder with an archive's ``MAR-INF``: the only folder in ``path``, if only that has it, or ``path``.

    A packed archive can be unpacked to such an outer folder; TorchServe loads both.
    """
    if not (path / "MAR-INF").is_dir():
        content = list(path.iterdir())
        if len(content) == 1 and (content[0] / "MAR-INF").is_dir():
            return content[0]
    return path


class FolderForm:
    """An archive as a folder.

    Links are followed, as TorchServe's workers do: DVC and the caches of model hubs link to other files, and Kubernetes
    mounts files as links into a folder ``..data``. A link without a target is listed as a link.

    Args:
        path: the folder.

    Raises:
        ArchiveError: the folder does not contain MAR-INF.
    """

    name = "folder"

    def __init__(self, path: Path) -> None:
        self.entries: list[Entry] = []
        self.flaws: list[Flaw] = []
        self.frontend_flaws: list[Flaw] = []
        self._path = path
        if not (path / "MAR-INF").is_dir():
            raise ArchiveError(
                f"{path} is a folder, not an archive",
                hint="an archive has a folder MAR-INF, the folder of a recipe an archive.yaml",
            )
        for folder, names, files in os.walk(path, followlinks=True):
            mounted = _is_mount(Path(folder))
            names[:] = sorted(
                name
                for name in names
                if not (mounted and name.startswith("..")) and not _links_upward(Path(folder), name)
            )
            for name in sorted(files):
                file = Path(folder, name)
                if not (status := _status(file)):
                    continue
                relative = file.relative_to(path).as_posix()
                self.entries.append(Entry(relative, status.st_size, kind_of_mode(status.st_mode)))
                if len(self.entries) > MAX_MEMBERS:
                    return  # no archive has as many: links form a cycle

    def open(self, entry: Entry) -> IO[bytes]:
        """Do nothing, because no file is open."""
        return open(self._path / entry.name, "rb")

    def close(self) -> None:
        """Do nothing: no file is held open."""


def _status(file: Path) -> os.stat_result | None:
    """Return the status of a file, or of a link whose target does not exist; None: the file no longer exists."""
    with contextlib.suppress(OSError):
        return file.stat()
    try:
        return file.lstat()
    except FileNotFoundError:  # renamed after it was listed, for example bytecode
        return None


def _is_mount(folder: Path) -> bool:
    """Return whether Kubernetes has mounted ``folder``: its files are links into a folder ``..data``.

    That is a link to the current of the folders with revisions, whose names begin with two dots, too.
    """
    return (folder / "..data").is_symlink()


def _links_upward(folder: Path, name: str) -> bool:
    """Return whether ``name`` in ``folder`` is a link to a folder that contains it."""
    path = folder / name
    return path.is_symlink() and path.resolve() in (folder.resolve(), *folder.resolve().parents)
