"""Lock files beside the files that they protect; the last user removes both together."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def acquire(path: Path, kind: int) -> int:
    """Return the descriptor of a locked file, which is created if it does not exist; closing it releases the lock.

    Args:
        path: path of the lock file; it may belong to another user, or be on a read-only file system.
        kind: ``fcntl.LOCK_SH`` or ``LOCK_EX``, perhaps with ``LOCK_NB``.

    Raises:
        BlockingIOError: others have the lock, and ``kind`` includes ``LOCK_NB``.
        OSError: the file cannot be opened.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError:
                raise error from None
        try:
            fcntl.flock(descriptor, kind)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the file was removed meanwhile, and a lock on it does not lock its successor
