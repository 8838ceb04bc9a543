"""An index of the archives in a model store, with their configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchmar import manifest
from torchmar.archive import Archive
from torchmar.deployment import versions
from torchmar.errors import TorchmarError

SECTION = "deployment"  # the section of a derived archive's configuration that later plans read


@dataclass(frozen=True)
class StoredArchive:
    """An archive: its path, and values from its manifest and configuration.

    Attributes:
        configured: whether it has a configuration, even an empty one; TorchServe then reads timeouts
            only from it.
        content: digest of all members except the manifest and the configuration, which differ between builds
            of one version. Empty if the archive lists no digests.
    """

    path: Path
    name: str
    version: str
    config: Mapping[str, Any] = field(default_factory=dict)
    configured: bool = False
    content: str = ""

    def number(self, key: str) -> int | None:
        """Return the value of a configuration key; None if it is no positive integer, which TorchServe ignores."""
        value = self.config.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    @property
    def worker_memory(self) -> int:
        """The GPU memory of one worker in bytes; 0 if unknown."""
        section = self.config.get(SECTION)
        value = section.get("workerMemory") if isinstance(section, dict) else None
        return value if isinstance(value, int) else 0


@dataclass(frozen=True)
class StoreIndex:
    """A model store: its folder and its archives by file name; unreadable archives are left out."""

    folder: Path | None = None
    archives: Mapping[str, StoredArchive] = field(default_factory=dict)

    def builds(self, name: str, version: str) -> list[StoredArchive]:
        """Return the archives of all builds of a version, the newest first."""
        same = [
            archive
            for archive in self.archives.values()
            if archive.name == name and versions.base(archive.version) == versions.base(version)
        ]
        return sorted(same, key=lambda archive: versions.number(archive.version), reverse=True)


def read(folder: Path | None, names: Iterable[str]) -> StoreIndex:
    """Return the index of a model store for the models ``names``; empty if the folder is not on this machine.

    Only files with the name of one of these models are opened, because a store may have many archives.
    """
    if folder is None or not folder.is_dir():
        return StoreIndex(None)
    prefixes = tuple({f"{name}-" for name in names} | {f"{name}." for name in names})
    archives = {}
    for path in sorted(folder.iterdir()):
        if prefixes and path.name.startswith(prefixes) and (stored := read_archive(path)):
            archives[path.name] = stored
    return StoreIndex(folder, archives)


def read_archive(path: Path) -> StoredArchive | None:
    """Return an archive's entry; None if the file does not exist, or is no archive."""
    try:
        with Archive(path) as archive:
            name, version, model = archive.manifest.name, archive.manifest.version, archive.manifest.model
            changing = {manifest.PATH, model.config_file}
            digests = sorted(line for line in archive.listed.items() if line[0] not in changing)
            content = hashlib.sha256(repr(digests).encode()).hexdigest() if digests else ""
            return StoredArchive(path, name, version, dict(archive.config), model.config_file is not None, content)
    except TorchmarError:
        return None
