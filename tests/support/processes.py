"""Properties of processes, for tests."""

from __future__ import annotations

import psutil


def forked_by(worker: int) -> psutil.Process:
    """Return the process that forked a worker: the parent of the worker's supervisor."""
    return psutil.Process(psutil.Process(psutil.Process(worker).ppid()).ppid())


def kill_worker(pid: int) -> bool:
    """Kill the process with a pid that a server has reported; return whether it existed.

    The pid of a worker that has ended is -1, as on TorchServe, and for the system, -1 means every process.
    """
    if pid <= 0:
        return False
    try:
        psutil.Process(pid).kill()
    except psutil.NoSuchProcess:
        return False
    return True
