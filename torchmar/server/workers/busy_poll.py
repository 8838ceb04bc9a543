"""Busy-poll the event loop briefly while one fast request is at a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from torchmar.worker.process.polling import PollGate, yield_core


class BusyPoller:
    """Keeps the loop turning while a fast worker is at a request.

    A core that has fallen asleep takes longer to come up again than what a small model computes. The worker
    stays awake on its side, see `torchmar.worker.process.frames`.

    Args:
        seconds: at the most, each time; 0: never.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._gate = PollGate()
        self._staying = False
        self._until = 0.0
        self._busy: Callable[[], object] = bool

    def stay(self, busy: Callable[[], object]) -> None:
        """Poll while ``busy`` is true, or until another program wants the core."""
        now = time.monotonic()
        if self._staying or not self._gate.enter(now):
            return
        self._staying, self._busy, self._until = True, busy, now + self.seconds
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        now = time.monotonic()
        if self._busy() and now < self._until:
            now, free = yield_core(now)
            if free:
                self._loop.call_soon(self._turn)
                return
        self._staying = False
        self._gate.leave(now)
