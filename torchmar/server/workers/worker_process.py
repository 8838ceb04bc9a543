"""The process of a worker, signalled through a pidfd."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Sequence

import psutil


class WorkerProcess:
    """The process of a worker, which is never confused with a later one of the same pid.

    Args:
        pid: for people and statistics.
        pidfds: its pidfd, opened while the process cannot have been reaped; empty where the system has none.
        kill: used where there is no pidfd: has the parent that reaps the process kill it.
    """

    def __init__(self, pid: int, pidfds: Sequence[int], kill: Callable[[], None]) -> None:
        self.pid = pid
        self._pidfd = pidfds[0] if pidfds else -1
        self._kill: Callable[[], None] | None = kill

    def kill(self) -> None:
        """Kill it at once; nothing happens if it has exited."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        elif self._kill:
            self._kill()

    def memory(self) -> int:
        """Return its resident bytes; 0 if it has exited."""
        with contextlib.suppress(psutil.Error, ValueError):
            resident = int(psutil.Process(self.pid).memory_info().rss)
            if self.runs:  # so this process was measured, not a later one of its pid
                return resident
        return 0

    @property
    def files(self) -> list[int]:
        """Its pidfd, for a message; empty where the system has none."""
        return [self._pidfd] if self._pidfd >= 0 else []

    def close(self) -> None:
        """Close the pidfd; the process is signalled no more, since its pid may be another's from now on."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._kill = None

    @property
    def runs(self) -> bool:
        """Whether it has not exited, as far as a pidfd tells."""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    __del__ = close
