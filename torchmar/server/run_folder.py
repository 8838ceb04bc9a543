"""The lock of a run folder: two servers in one folder would overwrite each other's key file and extracted archives."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from torchmar.errors import EngineError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the system releases it when the process ends.

    Raises:
        EngineError: another server runs in the folder.
    """
    # Lock the folder of the logs, so that no lock file is left. `torchmar serve` locks the run folder during a start.
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    descriptor = os.open(logs, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Other errors: the file system does not support such locks, as NFS for folders.
            if error.errno == errno.EWOULDBLOCK:
                hint = "stop it, or start this one in another folder"
                raise EngineError(f"{folder}: another server runs in this folder", hint=hint) from None
        yield
    finally:
        os.close(descriptor)
