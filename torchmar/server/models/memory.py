"""The memory that is left for models, and whether that of one more suffices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from torchmar.server.api_error import ApiError

# The least that a worker takes besides its weights.
_WORKER_BYTES = 64 << 20
_CGROUP = Path("/sys/fs/cgroup")
# Limit, use, and the statistics with the part of the use that the system takes back when it needs it.
_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def check(archive: Path, workers: int) -> None:
    """Check that the memory suffices for workers with a model. Blocking.

    Each is taken to need the size of the archive's files: weights are most of them, and most are loaded whole. What a
    model allocates besides is not known before it does.

    Args:
        archive: a file or folder.
        workers: their number.

    Raises:
        ApiError: 507, it does not suffice.
    """
    needed, left = workers * (size(archive) + _WORKER_BYTES), available()
    if needed > left:
        who = "a worker" if workers == 1 else f"{workers} workers"
        message = f"Insufficient memory: the model needs {_mib(needed)} MiB for {who}, and {_mib(left)} MiB are left."
        raise ApiError(507, "InsufficientMemoryException", message)


def size(archive: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if archive.is_file():
        return archive.stat().st_size
    return sum(file.stat().st_size for file in _files(archive))


def available() -> int:
    """Return the bytes that are left: of the machine, or of the container if that has less."""
    left = [psutil.virtual_memory().available]
    for limit_file, use_file, statistics_file, reclaimable in _FILES:
        with contextlib.suppress(OSError, ValueError):  # not there; "max" is no limit
            limit, used = (int((_CGROUP / name).read_text()) for name in (limit_file, use_file))
            statistics = dict(line.split() for line in (_CGROUP / statistics_file).read_text().splitlines())
            left.append(max(0, limit - used + int(statistics.get(reclaimable, 0))))
    return min(left)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            file = Path(parent, name)
            if file.is_file():  # not a link to nothing
                yield file


def _mib(size: int) -> int:
    return size >> 20
