"""torchmar.server.workers.busy_poll keeps the loop turning while a request is at a worker, and no longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from torchmar.server.workers.busy_poll import BusyPoller


def poll(seconds: float, busy: Callable[[int], bool], twice: bool = False) -> tuple[int, float]:
    """Return how often a `BusyPoller` called ``busy``, and the seconds for which the loop was busy with it."""
    count = 0

    def still() -> bool:
        nonlocal count
        count += 1
        return busy(count)

    async def main() -> float:
        awake = BusyPoller(seconds)
        before = time.thread_time()
        for _ in range(1 + twice):
            awake.poll(still)
        await asyncio.sleep(0.3)
        return time.thread_time() - before

    spent = asyncio.run(main())
    return count, spent


def test_polling_ends_with_its_requests() -> None:
    count, _ = poll(60, lambda count: count < 3)
    assert count <= 3  # fewer where others want the core
    count, _ = poll(60, lambda count: count < 3, twice=True)
    assert count <= 3


def test_it_ends_after_its_time() -> None:
    count, seconds = poll(0.01, lambda count: True)
    assert count >= 1
    assert seconds < 0.25


def test_a_time_of_zero_disables_polling() -> None:
    count, _ = poll(0, lambda count: True)
    assert count == 1
