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

SECTION = "deployment"  # of a derived archive's configuration: what a later plan has to know of it


@dataclass(frozen=True)
class StoredArchive:
    """An archive: where it is and what its manifest and its configuration say.

    Attributes:
        configured: whether there is a configuration, even an empty one; TorchServe then reads
            timeouts from it alone.
        content: a digest of all that is inside but the manifest and the configuration; builds of one
            version that have the same are made of the same. Empty where the archive lists no digests.
    """

    path: Path
    name: str
    version: str
    config: Mapping[str, Any] = field(default_factory=dict)
    configured: bool = False
    content: str = ""

    def number(self, key: str) -> int | None:
        """Return a key of the configuration as TorchServe takes it: a positive integer, or nothing."""
        value = self.config.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    @property
    def worker_memory(self) -> int:
        """The GPU memory that one worker needs, in bytes; 0 if unknown."""
        section = self.config.get(SECTION)
        value = section.get("workerMemory") if isinstance(section, dict) else None
        return value if isinstance(value, int) else 0


@dataclass(frozen=True)
class StoreIndex:
    """A model store: its folder and the archives in it by file name; unreadable ones are left out."""

    folder: Path | None = None
    archives: Mapping[str, StoredArchive] = field(default_factory=dict)

    def builds(self, name: str, version: str) -> list[StoredArchive]:
        """Return the archives of every build of a version of a model, the newest first."""
        same = [
            one
            for one in self.archives.values()
            if one.name == name and versions.base(one.version) == versions.base(version)
        ]
        return sorted(same, key=lambda one: versions.number(one.version), reverse=True)


def read(folder: Path | None, names: Iterable[str]) -> StoreIndex:
    """Return what lies in a model store of the models ``names``; nothing where the folder is not here.

    Only files that are named like one of the models are opened, since a store may have many.
    """
    if folder is None or not folder.is_dir():
        return StoreIndex(None)
    starts = tuple({f"{name}-" for name in names} | {f"{name}." for name in names})
    archives = {}
    for path in sorted(folder.iterdir()):
        if starts and path.name.startswith(starts) and (found := look(path)):
            archives[path.name] = found
    return StoreIndex(folder, archives)


def look(path: Path) -> StoredArchive | None:
    """Return what an archive says of itself; None where it is missing or none."""
    try:
        with Archive(path) as archive:
            name, version, model = archive.manifest.name, archive.manifest.version, archive.manifest.model
            changed = {manifest.PATH, model.config_file}
            inside = sorted(line for line in archive.listed.items() if line[0] not in changed)
            content = hashlib.sha256(repr(inside).encode()).hexdigest() if inside else ""
            return StoredArchive(path, name, version, dict(archive.config), model.config_file is not None, content)
    except TorchmarError:
        return None
