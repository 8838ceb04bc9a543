"""The memory that is available for models, and the memory that a model is estimated to need."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from torchmar.server.api_error import ApiError

# The least memory of a worker in addition to its weights.
_WORKER_BYTES = 64 << 20
_CGROUP = Path("/sys/fs/cgroup")
# Files of the limit, the use, and the statistics, with the key of memory that the system can reclaim.
_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


class Reservations:
    """Memory for models that are being loaded, so that two concurrent loads do not use the same memory."""

    def __init__(self) -> None:
        self._reserved = 0

    @contextlib.contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Reserve memory while the block runs.

        Args:
            amount: number of bytes.

        Raises:
            ApiError: 507, the available memory does not suffice.
        """
        free = available() - self._reserved
        if amount > free:
            message = f"Insufficient memory: the model needs {_mib(amount)} MiB, and {_mib(max(0, free))} MiB are left."
            raise ApiError(507, "InsufficientMemoryException", message)
        self._reserved += amount
        try:
            yield
        finally:
            self._reserved -= amount


def needed_by(archive: Path, workers: int) -> int:
    """Return the estimated memory of workers with a model in bytes: for each, the size of the archive's files.
    Blocking.

    Most of these are weights, and most weights are loaded whole. Further allocations of a model are unknown before.

    Args:
        archive: a file or folder.
        workers: number of workers.
    """
    return workers * (size(archive) + _WORKER_BYTES)


def size(archive: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if archive.is_file():
        return archive.stat().st_size
    return sum(file.stat().st_size for file in _files(archive))


def available() -> int:
    """Return the available bytes: of the machine, or of the container if it has less."""
    amounts = [psutil.virtual_memory().available]
    for limit_file, use_file, statistics_file, reclaimable in _FILES:
        with contextlib.suppress(OSError, ValueError):  # the file does not exist, or contains "max": there is no limit
            limit, used = (int((_CGROUP / name).read_text()) for name in (limit_file, use_file))
            statistics = dict(line.split() for line in (_CGROUP / statistics_file).read_text().splitlines())
            amounts.append(max(0, limit - used + int(statistics.get(reclaimable, 0))))
    return min(amounts)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            file = Path(parent, name)
            if file.is_file():  # not a broken link
                yield file


def _mib(size: int) -> int:
    return size >> 20
