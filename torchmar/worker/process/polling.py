"""Decide when to busy-poll: only while no other program wants the core.

A thread that gives its core away while another program computes does not get it back before that one's time slice is
over, some milliseconds: more than all that active waiting can save. Whether the core is wanted shows only by giving it
away, so that this is tried less and less often while it is.
"""

from __future__ import annotations

import os
import time

YIELDED = 50e-6  # seconds that the core was away for: this wait goes on asleep
TAKEN = 1e-3  # seconds: longer than a client, a server or a worker of small requests computes at once
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 1.6  # seconds without active waiting


class PollGate:
    """Whether a thread may wait actively, by how long it did not have its core while it did."""

    def __init__(self) -> None:
        self._pause = SHORTEST_PAUSE
        self._closed_until = float("-inf")
        self._entered = self._cpu = 0.0

    def enter(self, now: float) -> bool:
        """Begin to wait actively if that is worth a try, and return whether it is; ``now`` is `time.monotonic`'s."""
        if now < self._closed_until:
            return False
        self._entered, self._cpu = now, time.thread_time()
        return True

    def leave(self, now: float) -> None:
        """End a wait that `enter` has begun, in the same thread."""
        self.record(now, now - self._entered - (time.thread_time() - self._cpu))

    def record(self, now: float, away: float) -> None:
        """Close the gate for a while if the core was taken; for longer if that is soon after it was last opened."""
        if away < TAKEN:
            return
        soon = now - self._closed_until < 10 * self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if soon else SHORTEST_PAUSE
        self._closed_until = now + self._pause


def yield_core(now: float) -> tuple[float, bool]:
    """Let others have the core first; return the time when it is back, and whether nobody wanted it for long."""
    os.sched_yield()
    back = time.monotonic()
    return back, back - now < YIELDED
