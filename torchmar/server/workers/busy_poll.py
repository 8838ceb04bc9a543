"""Busy-poll the event loop briefly while one fast request is at a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from torchmar.worker.process.polling import PollGate, yield_core


class BusyPoller:
    """Keeps the event loop running while a fast worker runs a request.

    To wake a sleeping core takes longer than a small model needs. The worker polls as well, see
    `torchmar.worker.process.frames`.

    Args:
        seconds: longest duration of a poll; 0: never poll.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._gate = PollGate()
        self._polling = False
        self._end = 0.0
        self._busy: Callable[[], object] = bool

    def poll(self, busy: Callable[[], object]) -> None:
        """Poll while ``busy`` is true, or until another program needs the core."""
        now = time.monotonic()
        if self._polling or not self._gate.enter(now):
            return
        self._polling, self._busy, self._end = True, busy, now + self.seconds
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        now = time.monotonic()
        if self._busy() and now < self._end:
            now, free = yield_core(now)
            if free:
                self._loop.call_soon(self._turn)
                return
        self._polling = False
        self._gate.leave(now)
