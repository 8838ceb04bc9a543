"""The archives of another server's models, where its model store is on this machine."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torchmar.archive import Archive, digests
from torchmar.archive.collecting import SAMPLES_FILE
from torchmar.errors import TorchmarError
from torchmar.server.api.console import form

_LABELS_FILE = "index_to_name.json"
_LARGEST = 32 << 20  # largest size of a sample


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about a version from its archive, which the server does not report."""

    digest: str = ""
    size: int | None = None
    modified: float | None = None
    handler: str = ""
    description: str = ""


class Store:
    """A model store. Blocking.

    Args:
        folder: the folder; None: it is not on this machine.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._facts: dict[tuple[str, int, int], Facts] = {}  # facts by path, size and time of change

    def path(self, url: str) -> Path | None:
        """Return the file of a registration; None: it is not in this store."""
        if self.folder is None or "/" in url:
            return None
        path = self.folder / url
        return path if path.exists() else None

    def facts(self, url: str) -> Facts:
        """Return the facts in the archive of a registration; without the archive, no facts."""
        path = self.path(url)
        try:
            if path is None:
                return Facts()
            status = path.stat()
            key = str(path), status.st_size, status.st_mtime_ns
            if key not in self._facts:
                self._facts[key] = _read(path, None if path.is_dir() else status.st_size, status.st_mtime)
            return self._facts[key]
        except (OSError, TorchmarError):
            return Facts()

    def form(self, name: str, version: str, url: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return the form of a version; without its archive, a form for any input."""
        with self._opened(name, version, url, tensors) as opened:
            return form.form(opened)

    def sample(self, name: str, version: str, url: str, number: str) -> tuple[bytes, str]:
        """Return the body of a sample and its content type; see `torchmar.server.api.console.form.sample`."""
        with self._opened(name, version, url, {}) as opened:
            _, body, content_type = form.sample(opened, number)
            return body, content_type

    @contextlib.contextmanager
    def _opened(self, name: str, version: str, url: str, tensors: Mapping[str, Any]) -> Iterator[_Version]:
        """Yield a version with those files of its archive that its form needs."""
        with tempfile.TemporaryDirectory(prefix="torchmar-console-") as temporary:
            folder, handler, config = Path(temporary), "", {}
            if path := self.path(url):
                with Archive(path) as archive:
                    handler, config = archive.manifest.model.handler, archive.config
                    _extract(archive, folder)
            yield _Version(
                name=name,
                version=version,
                archive=SimpleNamespace(folder=folder, config=config),
                serving=SimpleNamespace(pool=SimpleNamespace(handler=handler)),
                pool=SimpleNamespace(description=tensors),
            )


@dataclass
class _Version:
    """A version, in the form for `torchmar.server.api.console.form`."""

    name: str
    version: str
    archive: Any
    serving: Any
    pool: Any


def _extract(archive: Archive, folder: Path) -> None:
    inputs = [sample.input for sample in archive.samples if sample.input]
    for name in (SAMPLES_FILE, _LABELS_FILE, *inputs):
        if archive.sizes.get(name, _LARGEST + 1) <= _LARGEST:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))


def _read(path: Path, size: int | None, modified: float) -> Facts:
    with Archive(path) as archive:
        model = archive.manifest.model
        return Facts(
            # Without digests in the archive, a reading would read all of it.
            digest=archive.digest if digests.PATH in archive else "",
            size=size,
            modified=round(modified, 3),
            handler=model.handler,
            description=model.description or "",
        )
