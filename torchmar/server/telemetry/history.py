"""Ten minutes of a server's load, one sample for each second, in bounded memory.

A sample is the difference of existing counters within a second. Percentiles are those of the histograms at
``/metrics``, interpolated within a bucket as by Prometheus' ``histogram_quantile``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torchmar.server.telemetry.metrics import LATENCY_SECONDS

SECONDS = 600  # length of the history
_MOST_SAMPLES = 20_000  # limit for all versions; a sample has some 600 bytes

Key = tuple[str, str]
"""Name and version of a model."""


class Workers(NamedTuple):
    """The workers of a version: the ready ones, the configured number, and the number of waiting requests."""

    ready: int
    wanted: int
    pending: int


class Sample(NamedTuple):
    """The requests of a version in one second. None means unknown, because other servers have fewer counters.

    Attributes:
        succeeded: number of requests answered with 2xx; if ``failures`` are unknown, of all requests.
        failures: number of requests answered with another status, by status.
        latency: number of requests in each bucket of `LATENCY_SECONDS`, from arrival to the end of the handler.
        queue: the same until the requests were sent to a worker.
        batches: number of batches in each bucket of `torchmar.server.telemetry.metrics.BATCH_SIZES`.
        latency_seconds: sum of all latencies.
        queue_seconds: sum of all times in the queue.
    """

    succeeded: int
    failures: Mapping[int, int] | None
    latency: Sequence[int] | None
    queue: Sequence[int] | None
    batches: Sequence[int] | None
    latency_seconds: float
    queue_seconds: float


class Tick(NamedTuple):
    """One second of a server's load.

    Attributes:
        time: time of its end, in seconds since 1970.
        seconds: seconds since the previous tick.
        total: workers of all versions.
        samples: samples of the versions that answered requests.
        changed: versions whose workers have changed; zeros for a version that is no longer registered.
        failures: failed requests of the whole server, by status or its class; None: they are in the samples of the
            versions.
    """

    time: float
    seconds: float
    total: Workers
    samples: Mapping[Key, Sample]
    changed: Mapping[Key, Workers]
    failures: Mapping[str, int] | None = None


class History:
    """The ticks of the last ten minutes.

    If more than about thirty versions are constantly busy, the history is shorter.

    Args:
        seconds: largest number of ticks.
        most_samples: largest number of samples in all ticks.
    """

    def __init__(self, seconds: int = SECONDS, most_samples: int = _MOST_SAMPLES) -> None:
        self._length, self._most_samples = seconds, most_samples
        self._ticks: deque[Tick] = deque()
        self._samples = 0
        self._before: dict[Key, Workers] = {}  # those before the first tick
        self.workers: dict[Key, Workers] = {}

    @property
    def latest(self) -> Tick | None:
        """The last tick; None: there is none yet."""
        return self._ticks[-1] if self._ticks else None

    def add(self, tick: Tick) -> None:
        """Add a tick, and drop ticks that are too old."""
        self._ticks.append(tick)
        self._samples += len(tick.samples)
        _apply(self.workers, tick.changed)
        while len(self._ticks) > self._length or self._samples > self._most_samples:
            oldest = self._ticks.popleft()
            self._samples -= len(oldest.samples)
            _apply(self._before, oldest.changed)

    def columns(self, model: str = "", version: str = "", since: float = 0.0) -> dict[str, list[Any]]:
        """Return the ticks after ``since``, as a list for each key of `row`.

        Args:
            model: model of the requests; empty: all models.
            version: version of the model; empty: all versions.
            since: time in seconds since 1970.
        """
        state = dict(self._before)
        rows = []
        for tick in self._ticks:
            _apply(state, tick.changed)
            if tick.time > since:
                rows.append(_row(tick, state, model, version))
        return {key: [row[key] for row in rows] for key in ROW}

    def row(self, model: str = "", version: str = "") -> dict[str, Any] | None:
        """Return the last tick of a model, of a version, or of the server; None: there is none yet.

        Durations are in milliseconds, and None without requests. ``failures`` are by status, ``batches`` by bucket.
        """
        return _row(self._ticks[-1], self.workers, model, version) if self._ticks else None

    def summaries(self, model: str = "") -> dict[Key, dict[str, Any]]:
        """Return the load of each version over all ticks: numbers of requests, and percentiles of all of them.

        Args:
            model: model of the versions; empty: all versions that answered requests.
        """
        samples: dict[Key, list[Sample]] = {}
        for tick in self._ticks:
            for key, sample in tick.samples.items():
                if model in ("", key[0]):
                    samples.setdefault(key, []).append(sample)
        seconds = sum(tick.seconds for tick in self._ticks)
        return {key: _summary(of_version, seconds) for key, of_version in samples.items()}

    def loads(self) -> Iterator[tuple[Key, dict[str, Any]]]:
        """Yield the load of the last second for each version that answered requests."""
        if self._ticks:
            tick = self._ticks[-1]
            for key, sample in tick.samples.items():
                yield key, _load((sample,), tick.seconds)


ROW = (
    *("time", "requests", "failed", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "queue_ms", "queue_p99_ms"),
    *("failures", "batches", "ready", "wanted", "pending"),
)


def _row(tick: Tick, state: Mapping[Key, Workers], model: str, version: str) -> dict[str, Any]:
    failures = None
    if not model:
        workers, samples, failures = tick.total, list(tick.samples.values()), tick.failures
    else:
        keys = [key for key in state if key[0] == model and version in ("", key[1])]
        workers = (
            Workers(*(sum(column) for column in zip(*(state[key] for key in keys), strict=True))) if keys else _NONE
        )
        samples = [sample for key, sample in tick.samples.items() if key[0] == model and version in ("", key[1])]
    return {"time": round(tick.time, 3), **_load(samples, tick.seconds, failures), **workers._asdict()}


def _load(samples: Sequence[Sample], seconds: float, of_server: Mapping[str, int] | None = None) -> dict[str, Any]:
    if not samples and not of_server:
        return dict(_IDLE)
    failures = _failures(samples) if of_server is None else of_server
    latency = _added([sample.latency for sample in samples])
    queue = _added([sample.queue for sample in samples])
    failed = None if failures is None else sum(failures.values())
    answered = _answered(samples)
    timed = answered if latency is None else sum(latency)
    return {
        "requests": round(answered / seconds, 2),
        "failed": None if failed is None else round(failed / seconds, 2),
        "mean_ms": _mean(sum(sample.latency_seconds for sample in samples), timed),
        "p50_ms": percentile(latency, 0.5),
        "p95_ms": percentile(latency, 0.95),
        "p99_ms": percentile(latency, 0.99),
        "queue_ms": _mean(sum(sample.queue_seconds for sample in samples), timed),
        "queue_p99_ms": percentile(queue, 0.99),
        "failures": dict(sorted(failures.items())) if failures else None,
        "batches": _added([sample.batches for sample in samples]),
    }


def _summary(samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    failures = _failures(samples)
    return {
        **_load(samples, seconds),
        "seconds": round(seconds, 1),
        "request_count": _answered(samples),
        "failed_count": None if failures is None else sum(failures.values()),
    }


def _answered(samples: Iterable[Sample]) -> int:
    return sum(sample.succeeded + sum((sample.failures or {}).values()) for sample in samples)


def _failures(samples: Iterable[Sample]) -> dict[str, int] | None:
    """Return the failed requests by status; None: those of a sample are unknown."""
    failures: Counter[int] = Counter()
    for sample in samples:
        if sample.failures is None:
            return None
        failures.update(sample.failures)
    return {str(status): count for status, count in failures.items()}


def percentile(counts: Sequence[int] | None, share: float) -> float | None:
    """Return the milliseconds that a share of the requests did not exceed; None without requests.

    Args:
        counts: number of requests in each bucket of `LATENCY_SECONDS`; the last bucket is for all above. None: unknown.
        share: the share, such as 0.99.
    """
    rank = share * sum(counts or ())
    if not counts or not rank:
        return None
    below, lower = 0, 0.0
    for bound, count in zip(LATENCY_SECONDS, counts, strict=False):
        if below + count >= rank:
            return round((lower + (bound - lower) * (rank - below) / count) * 1000, 3)
        below, lower = below + count, bound
    return lower * 1000


def _added(lists: Sequence[Sequence[int] | None]) -> list[int] | None:
    """Return the sums by bucket; None: a list is unknown, or there is no list."""
    present = [counts for counts in lists if counts is not None]
    return [sum(column) for column in zip(*present, strict=True)] if present and len(present) == len(lists) else None


def _mean(total_seconds: float, count: int) -> float | None:
    return round(total_seconds / count * 1000, 3) if count else None


def _apply(state: dict[Key, Workers], changed: Mapping[Key, Workers]) -> None:
    for key, workers in changed.items():
        if workers == _NONE:
            state.pop(key, None)
        else:
            state[key] = workers


_NONE = Workers(0, 0, 0)
_IDLE: Mapping[str, Any] = {
    "requests": 0.0,
    "failed": 0.0,
    **dict.fromkeys(("mean_ms", "p50_ms", "p95_ms", "p99_ms", "queue_ms", "queue_p99_ms", "failures", "batches")),
}
