"""The decision when to busy-poll: only while no other program needs the core.

A thread that yields its core to another program gets it back only after that program's time slice, some milliseconds
later, which is more than polling can save. Only yielding shows whether another program needs the core; therefore
polling is tried less and less often while one does.
"""

from __future__ import annotations

import os
import time

YIELDED = 50e-6  # seconds without the core, after which this wait continues asleep
TAKEN = 1e-3  # seconds that are longer than a client, a server or a worker computes for a small request
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 1.6  # seconds without polling


class PollGate:
    """Decides whether a thread may poll, by the time for which it lost its core while it polled before."""

    def __init__(self) -> None:
        self._pause = SHORTEST_PAUSE
        self._closed_until = float("-inf")
        self._entered = self._cpu = 0.0

    def enter(self, now: float) -> bool:
        """Start to poll unless the gate is closed; return whether polling has started.

        Args:
            now: current time, by `time.monotonic`.
        """
        if now < self._closed_until:
            return False
        self._entered, self._cpu = now, time.thread_time()
        return True

    def leave(self, now: float) -> None:
        """End polling after `enter`, in the same thread."""
        elapsed = now - self._entered
        if elapsed >= TAKEN:  # otherwise no system call is needed: it cannot have lost its core for as long
            self.record(now, elapsed - (time.thread_time() - self._cpu))

    def record(self, now: float, seconds_away: float) -> None:
        """Close the gate for a while if the core was taken; for longer if the gate was opened shortly before."""
        if seconds_away < TAKEN:
            return
        soon = now - self._closed_until < 10 * self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if soon else SHORTEST_PAUSE
        self._closed_until = now + self._pause


def yield_core(now: float) -> tuple[float, bool]:
    """Yield the core to other threads; return the time afterwards, and whether the core was back almost at once."""
    os.sched_yield()
    back = time.monotonic()
    return back, back - now < YIELDED
