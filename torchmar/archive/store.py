"""A model store: its archives, sorted by name and version."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torchmar.archive.read import Archive
from torchmar.errors import ArchiveError, TorchmarError


def find(store: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Return the archives of a model store, by name and then from the oldest version to the newest.

    Args:
        store: a folder.
        names: only the archives of these models; None is all, and those that cannot be opened too.

    Raises:
        ArchiveError: the store is no folder, or has no archive of one of ``names``.
    """
    if not store.is_dir():
        raise ArchiveError(f"the model store {store} is not a folder", hint="torchmar build makes one")
    found = []
    for path in sorted(filter(_is_archive, store.iterdir())):
        try:
            with Archive(path) as archive:
                found.append((archive.manifest.name, order(archive.manifest.version), path))
        except TorchmarError:
            if names is None:  # loading it reports the error
                found.append((path.name, order(""), path))
    have = {name for name, _, _ in found}
    for name in names or ():
        if name not in have:
            raise ArchiveError(
                f"{store} has no archive of a model {name!r}", hint=f"it has {', '.join(sorted(have)) or 'none at all'}"
            )
    return [path for name, _, path in sorted(found) if names is None or name in names]


def _is_archive(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.name.endswith((".mar", ".tar.gz")) or (path / "MAR-INF").is_dir()


def order(version: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts versions as people read them: 1.9 before 1.10, 2.0rc1 before 2.0."""
    parts = re.findall(r"\d+|[A-Za-z]+", version.split("+")[0])
    key = [(2, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
    return [*key, (1, 0, version)]
