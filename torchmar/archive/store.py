"""A model store: its archives, sorted by name and version."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torchmar.archive.folder_form import archive_folder
from torchmar.archive.read import Archive
from torchmar.errors import ArchiveError, TorchmarError


def find(store: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Return the archives in a model store, by name, then from the oldest version to the newest.

    Args:
        store: folder of the model store.
        names: models whose archives are returned; None: all archives, including those that cannot be opened.

    Raises:
        ArchiveError: the store is not a folder, or has no archive of one of ``names``.
    """
    if not store.is_dir():
        raise ArchiveError(f"the model store {store} is not a folder", hint="torchmar build makes one")
    archives = []
    for path in sorted(filter(is_archive, store.iterdir())):
        try:
            with Archive(path) as archive:
                archives.append((archive.manifest.name, order(archive.manifest.version), path))
        except TorchmarError:
            if names is None:  # loading the archive reports the error
                archives.append((path.name, order(""), path))
    model_names = {name for name, _, _ in archives}
    for name in names or ():
        if name not in model_names:
            raise ArchiveError(
                f"{store} has no archive of a model {name!r}",
                hint=f"it has {', '.join(sorted(model_names)) or 'none at all'}",
            )
    return [path for name, _, path in sorted(archives) if names is None or name in names]


def is_archive(path: Path) -> bool:
    """Return whether an entry of a model store is an archive: by its name, or a folder with ``MAR-INF``.

    The names are those that TorchServe loads with ``load_models=all``, without hidden entries. TorchServe also tries
    all other folders, without success.
    """
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return (archive_folder(path) / "MAR-INF").is_dir()
    return path.name.endswith((".mar", ".model", ".tar.gz"))


def order(version: str) -> list[tuple[int, int, str]]:
    """Return a sort key for versions in their usual order: 1.9 before 1.10, 2.0rc1 before 2.0."""
    parts = re.findall(r"\d+|[A-Za-z]+", version.split("+")[0])
    key = [(2, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
    return [*key, (1, 0, version)]
