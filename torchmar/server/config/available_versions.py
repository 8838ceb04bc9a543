"""The archives that are currently in a model store or below a base path, and the selection of those to serve."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torchmar.archive import Archive
from torchmar.archive.folder_form import archive_folder
from torchmar.archive.store import is_archive, order
from torchmar.errors import TorchmarError
from torchmar.server.config.base_paths import BasePath, VersionPolicy

_SUFFIXES = (".mar", ".tar.gz", ".model")
_SUMS = "MAR-INF/SHA256SUMS"


class AvailableVersion(NamedTuple):
    """An archive that is a version of a model.

    Attributes:
        model: its name.
        version: version; below a base path, the number of its file or folder.
        path: path of the archive.
        stamp: changes whenever the archive is written to.
    """

    model: str
    version: str
    path: Path
    stamp: tuple[int, ...]


#: The result of an earlier call, by path: archives without changes since then are not read again.
Known = Mapping[Path, AvailableVersion]


def in_store(store: Path, earlier: Known | None = None) -> list[AvailableVersion]:
    """Return the complete archives in a model store, with the names and versions of their manifests."""
    return list(_complete(((path, None) for path in entries(store) if is_archive(path)), earlier))


def in_base_path(base_path: BasePath, earlier: Known | None = None) -> list[AvailableVersion]:
    """Return the complete archives below a base path: ``1/``, ``2.mar`` ..., under the model's name and these numbers.

    If a folder and a file have the same number, the folder is used.
    """
    numbered = [(path, version) for path in entries(base_path.path) if (version := number(path)) is not None]
    numbered.sort(key=lambda entry: entry[0].is_dir())
    paths = {version: path for path, version in numbered}
    return list(_complete(((path, (base_path.name, version)) for version, path in paths.items()), earlier))


def select(versions: Iterable[AvailableVersion], policy: VersionPolicy) -> list[AvailableVersion]:
    """Return the versions of one model that a policy serves, from the oldest to the newest."""
    ordered = sorted(versions, key=lambda available: order(available.version))
    if policy.versions:
        return [available for available in ordered if available.version in policy.versions]
    return ordered[-policy.latest :] if policy.latest else ordered


def entries(folder: Path) -> list[Path]:
    """Return the entries of a folder, except hidden ones; empty if it does not exist."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []  # it may be created later


def number(path: Path) -> str | None:
    """Return the version in the name of an entry of a base path; None for other entries."""
    suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), "")
    stem = path.name.removesuffix(suffix)
    return str(int(stem)) if stem.isascii() and stem.isdigit() and (suffix or path.is_dir()) else None


def _complete(
    candidates: Iterable[tuple[Path, tuple[str, str] | None]], previous: Known | None
) -> Iterator[AvailableVersion]:
    """Yield the archives that can be opened and are complete; a file that is being copied cannot be opened yet."""
    for path, identity in candidates:
        with contextlib.suppress(TorchmarError, OSError):
            current = stamp(path)
            if (before := previous.get(path) if previous else None) is not None and before.stamp == current:
                yield before
                continue
            with Archive(path) as archive:
                manifest = archive.manifest
                if missing(archive):
                    continue
            model, version = identity or (manifest.name, manifest.version)
            yield AvailableVersion(model, version, path, current)


def missing(archive: Archive) -> list[str]:
    """Return the members that are listed in the folder of a torchmar archive but missing; empty for other archives."""
    if not archive.path.is_dir() or _SUMS not in archive:
        return []
    lines = archive.read(_SUMS).decode("utf-8", "replace").splitlines()
    return [name for line in lines if (name := line.partition("  ")[2]) and name not in archive]


def stamp(path: Path) -> tuple[int, ...]:
    """Return sizes and times of a file, or of all files in a folder; equal if no file was written."""
    if not path.is_dir():
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    count = size = newest = 0
    for folder, _, names in os.walk(archive_folder(path)):
        for name in names:
            status = Path(folder, name).stat()
            count, size, newest = count + 1, size + status.st_size, max(newest, status.st_mtime_ns)
    return count, size, newest
