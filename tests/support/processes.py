"""Properties of processes, for tests."""

from __future__ import annotations

import psutil


def forked_by(worker: int) -> psutil.Process:
    """Return the process that a worker is a fork of: its parent is its supervisor, whose parent that is."""
    return psutil.Process(psutil.Process(psutil.Process(worker).ppid()).ppid())


def kill_worker(pid: int) -> bool:
    """Kill a process of a number that a server has reported; return whether it was there.

    A worker that has ended has the number -1, as on TorchServe, and to the system that is every process.
    """
    if pid <= 0:
        return False
    try:
        psutil.Process(pid).kill()
    except psutil.NoSuchProcess:
        return False
    return True
