"""The process of a worker, signalled through a pidfd."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Sequence

import psutil


class WorkerProcess:
    """The process of a worker, which is never confused with a later process of the same pid.

    Args:
        pid: process id, for people and statistics.
        pidfds: its pidfd, opened before the process can have been reaped; empty if the system has no pidfds.
        kill: function for systems without pidfds: it lets the parent, which reaps the process, kill it.
    """

    def __init__(self, pid: int, pidfds: Sequence[int], kill: Callable[[], None]) -> None:
        self.pid = pid
        self._pidfd = pidfds[0] if pidfds else -1
        self._kill: Callable[[], None] | None = kill

    def kill(self) -> None:
        """Kill the process at once; do nothing if it has exited."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        elif self._kill:
            self._kill()

    def memory(self) -> int:
        """Return its resident bytes; 0 if it has exited."""
        with contextlib.suppress(psutil.Error, ValueError):
            resident = int(psutil.Process(self.pid).memory_info().rss)
            if self.runs:  # then this process was measured, and not a later one with its pid
                return resident
        return 0

    @property
    def files(self) -> list[int]:
        """Its pidfd, for a message; empty if the system has no pidfds."""
        return [self._pidfd] if self._pidfd >= 0 else []

    def close(self) -> None:
        """Close the pidfd; no signals are sent any more, because another process may get the pid."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._kill = None

    @property
    def runs(self) -> bool:
        """Whether it has not exited, as far as a pidfd shows."""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    __del__ = close
