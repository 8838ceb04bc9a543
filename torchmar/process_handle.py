"""Process handles that stay valid when the kernel reuses the pid."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from pathlib import Path

import psutil


class ProcessHandle:
    """A process, opened while it had its pid; a context manager.

    On Linux 5.3 and later, the handle is a pidfd. Elsewhere, the start time of the process is compared before each
    signal.

    Attributes:
        pid: pid of the process; another process may have it after this one has ended and was reaped.
        identity: text that no other process has at any time, by `identify`.
    """

    def __init__(self, pid: int) -> None:
        """Open a process.

        Raises:
            ProcessLookupError: no process has this pid.
        """
        self.pid = pid
        self._descriptor = -1
        if hasattr(os, "pidfd_open"):
            try:
                self._descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                raise
            except OSError:  # an older system, or a sandbox that forbids it
                pass
        self.identity = identify(pid)
        if not self.identity or not self.runs:
            self.close()
            raise ProcessLookupError(pid)

    @property
    def runs(self) -> bool:
        """Whether the process has not ended."""
        if self._descriptor < 0:
            return identify(self.pid) == self.identity
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return not poll.poll(0)

    def signal(self, number: int) -> bool:
        """Send a signal; return whether the process existed.

        Raises:
            PermissionError: the process belongs to another user.
        """
        try:
            if self._descriptor >= 0:
                signal.pidfd_send_signal(self._descriptor, number)
            elif self.runs:
                os.kill(self.pid, number)
            else:
                return False
        except ProcessLookupError:
            return False
        return True

    def environment(self, name: str) -> str | None:
        """Return an environment variable of the process at its start; None: it is not set, or may not be read."""
        with contextlib.suppress(psutil.Error, OSError):
            value = psutil.Process(self.pid).environ().get(name)
            if self.runs:  # the variable is certainly that of this process
                return value
        return None

    def close(self) -> None:
        """Forget the process."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> ProcessHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def identify(pid: int) -> str:
    """Return a text that identifies a process among all processes that ever have its pid; empty: it does not run.

    On Linux, the text consists of the boot id and the clock tick of the start, which do not depend on the system's
    clock.
    """
    try:
        if sys.platform == "linux":
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            return "" if fields[0] in (b"Z", b"X") else f"{boot} {int(fields[19])}"
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time()}"
    except (OSError, psutil.Error, IndexError, ValueError):
        return ""
