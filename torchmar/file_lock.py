"""Locks of files beside what they protect, which the last user removes together with it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def acquire(path: Path, kind: int) -> int:
    """Return the descriptor of a locked file, which is made if it does not exist; to close it releases the lock.

    Args:
        path: of the file; it may be one of another user, or on a file system that is read-only.
        kind: ``fcntl.LOCK_SH`` or ``LOCK_EX``, perhaps with ``LOCK_NB``.

    Raises:
        BlockingIOError: others have it, and ``kind`` has ``LOCK_NB``.
        OSError: it cannot be opened.
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
        os.close(descriptor)  # it was removed meanwhile, and does not lock the next one
