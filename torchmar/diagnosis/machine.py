"""The check of memory and disk space for the archives of a model store."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from torchmar.archive import Archive
from torchmar.archive import store as stores
from torchmar.archive.built_archive import show_size
from torchmar.diagnosis.finding import Finding, ok, warning
from torchmar.engines.server_records import ServerRecord
from torchmar.errors import TorchmarError

# Bytes that a server and a worker use without weights, measured with torch 2.13 on Linux.
_SERVER = 350_000_000
_WORKER = 200_000_000
_LOGS = 160_000_000  # two logs that roll, 4 files of 20 MB each
_CGROUP = Path("/sys/fs/cgroup")


def check(model_store: Path, run_folder: Path, running: ServerRecord | None) -> Iterator[Finding]:
    """Yield the free memory and disk space, and whether they suffice for the whole model store."""
    needs, content = _needs(model_store)
    free, limit = available()
    yield ok("memory", f"{show_size(free)} available{f' within a limit of {show_size(limit)}' if limit else ''}")
    if running is None and needs > free:
        yield warning(
            "memory",
            f"serving all of {model_store} needs about {show_size(needs)}",
            "name the models to serve, or lower minWorkers: torchmar serve MODEL",
        )
    temporary = Path(tempfile.gettempdir())
    for folder, required, use in (
        (temporary, content, "every registration extracts its archive to it"),
        (_existing(run_folder), _LOGS, "the logs are written to it"),
    ):
        space = shutil.disk_usage(folder).free
        if space < required:
            yield warning(
                "disk",
                f"{folder} has {show_size(space)} left; {use}: about {show_size(required)}",
                "free some space, or set TMPDIR to a larger disk" if folder == temporary else "free some space",
            )
        else:
            yield ok("disk", f"{show_size(space)} left in {folder}")


def available() -> tuple[int, int]:
    """Return the available memory in bytes, and the limit of a container or service; 0 if there is none."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or no limit
        return free, 0
    return min(free, limit - used), limit


def _needs(model_store: Path) -> tuple[int, int]:
    """Return the bytes of memory and of disk that all archives of a store need when they are served."""
    memory, disk = _SERVER, 0
    try:
        paths = stores.find(model_store)
    except TorchmarError:
        return memory, disk
    for path in paths:
        with contextlib.suppress(TorchmarError), Archive(path) as archive:
            content = sum(archive.sizes.values())
            memory += int(max(archive.number("minWorkers", 1), 1) * (_WORKER + content))
            disk += content if archive.form != "folder" else 0  # a folder is linked, not copied
    return memory, disk


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
