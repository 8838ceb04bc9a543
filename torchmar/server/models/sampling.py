"""The sampler of the load: once a second, it turns the counters of all versions into a tick of the history."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torchmar.server.models.registry import Registry
from torchmar.server.telemetry import logs
from torchmar.server.telemetry.history import History, Key, Sample, Tick, Workers
from torchmar.server.telemetry.metrics import Metrics, VersionCounters
from torchmar.server.telemetry.statistics import Statistics
from torchmar.server.workers.pools import VersionPool

_INTERVAL_S = 1.0


class _Counts(NamedTuple):
    """The counters of a version at one time."""

    statistics: Statistics
    succeeded: int
    failures: dict[int, int]
    latency: list[int]
    queue: list[int]
    batches: list[int]
    latency_seconds: float
    queue_seconds: float


class Sampler:
    """Samples the versions of a registry.

    Args:
        registry: the models.
        metrics: their counters.
        history: receives the ticks.

    Attributes:
        on_tick: called after each tick.
    """

    def __init__(self, registry: Registry, metrics: Metrics, history: History) -> None:
        self._registry, self._metrics, self._history = registry, metrics, history
        self._counts: dict[Key, _Counts] = {}
        self._time = time.monotonic()
        self.on_tick: Callable[[], None] = lambda: None

    async def run(self) -> None:
        """Sample once a second until the task is cancelled."""
        due = time.monotonic()
        while True:
            due = max(due + _INTERVAL_S, time.monotonic())  # a late tick is not made up for
            await asyncio.sleep(due - time.monotonic())
            try:
                self.sample()
                self.on_tick()
            except Exception:
                logs.SERVER.exception("a sample of the load failed")

    def sample(self) -> None:
        """Add a tick to the history."""
        now = time.monotonic()
        seconds, self._time = max(now - self._time, 1e-3), now
        samples: dict[Key, Sample] = {}
        changed: dict[Key, Workers] = {}
        before = self._history.workers
        ready = desired = pending = 0
        keys = set()
        # With many models most are idle; their cost is that of this loop.
        for key, pool in self._pools():
            keys.add(key)
            workers = pool.ready, pool.min_workers, pool.pending
            ready, desired, pending = ready + workers[0], desired + workers[1], pending + workers[2]
            if before.get(key, _NONE) != workers:
                changed[key] = Workers(*workers)
            if (counters := self._metrics.counters(*key)) and (sample := self._sample(key, counters)):
                samples[key] = sample
        for key in before.keys() - keys:
            changed[key] = _NONE
        for key in self._counts.keys() - keys:
            del self._counts[key]
        self._history.add(Tick(time.time(), seconds, Workers(ready, desired, pending), samples, changed))

    def _pools(self) -> Iterator[tuple[Key, VersionPool]]:
        for name, model in self._registry.models.items():
            for version, registered in model.versions.items():
                yield (name, version), registered.pool

    def _sample(self, key: Key, counters: VersionCounters) -> Sample | None:
        """Return the difference from the previous call; None: the version has answered no request since then."""
        statistics, before = counters.statistics, self._counts.get(key)
        if before and before.statistics is not statistics:  # the version was registered again
            before = None
        if before and before.succeeded == statistics.succeeded and before.failures == statistics.failures:
            return None
        now = self._counts[key] = _Counts(
            statistics,
            statistics.succeeded,
            dict(statistics.failures),
            list(counters.latency.counts),
            list(counters.queue.counts),
            list(counters.batches.counts),
            counters.latency.value,
            counters.queue.value,
        )
        old = before or _Counts(
            statistics, 0, {}, [0] * len(now.latency), [0] * len(now.queue), [0] * len(now.batches), 0.0, 0.0
        )
        failures = {status: count - old.failures.get(status, 0) for status, count in now.failures.items()}
        sample = Sample(
            now.succeeded - old.succeeded,
            {status: count for status, count in failures.items() if count},
            _difference(now.latency, old.latency),
            _difference(now.queue, old.queue),
            _difference(now.batches, old.batches),
            now.latency_seconds - old.latency_seconds,
            now.queue_seconds - old.queue_seconds,
        )
        return sample if sample.succeeded or sample.failures else None


def _difference(now: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
    return tuple(new - old for new, old in zip(now, before, strict=True))


_NONE = Workers(0, 0, 0)
