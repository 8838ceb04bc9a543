"""CPU seconds and memory of a server's process and its descendants; and busy processes beside it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of the living processes of a tree so far, in user and system mode."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in _tree(pid)))


def scheduled_seconds(pid: int, *, children: bool = False) -> float:
    """Return the CPU seconds of a process so far, with ``children`` of its tree, to the nanosecond; Linux only."""
    total = 0
    for process in _tree(pid) if children else (psutil.Process(pid),):
        for task in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # a thread that has ended
                total += int(task.read_text().split()[0])
    return total / 1e9


def memory(pid: int) -> int:
    """Return the bytes of a tree, with shared pages counted once (PSS; USS if there is no PSS)."""
    full = (process.memory_full_info() for process in _tree(pid))
    return sum(getattr(process, "pss", process.uss) for process in full)


def _tree(pid: int) -> Iterator[psutil.Process]:
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process


_NEIGHBOUR = """
import os
parent = os.getppid()
while os.getppid() == parent:  # it ends with the benchmark, whatever ends that
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep ``count`` processes of one thread busy, each in a separate session, as a server is."""
    command = [sys.executable, "-c", _NEIGHBOUR]
    processes = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
