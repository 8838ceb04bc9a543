"""The load of another server for the history: the difference between two readings of its metrics. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from torchmar import metrics
from torchmar.metrics import Reading
from torchmar.remote_console.reader import Snapshot
from torchmar.server.telemetry.history import Key, Sample, Tick, Workers

_COUNT = "ts_inference_requests_total"
_FAILED = ("4XX", "5XX")
_NONE = Workers(0, 0, 0)
#: Values that its metrics do not have: latency is a sum, which only gives a mean; failures are the server's.
NOT_REPORTED = ("p50_ms", "p95_ms", "p99_ms", "queue_p99_ms", "batches", "failures")


def tick(before: Snapshot, now: Snapshot, workers: Mapping[Key, Workers]) -> Tick:
    """Return the second between two snapshots.

    Args:
        before: the earlier snapshot.
        now: the later snapshot.
        workers: workers of the history so far.
    """
    current = dict(_workers(now))
    changed = {key: state for key, state in current.items() if workers.get(key, _NONE) != state}
    changed |= dict.fromkeys(workers.keys() - current.keys(), _NONE)
    total = Workers(*map(sum, zip(*current.values(), strict=True))) if current else _NONE
    seconds = max(now.time - before.time, 1e-3)
    if before.metrics is None or now.metrics is None:
        return Tick(now.time, seconds, total, {}, changed, {})
    failures = {name: _increase(before.metrics, now.metrics, f"Requests{name}") for name in _FAILED}
    samples = dict(_samples(before.metrics, now.metrics, now, seconds))
    return Tick(now.time, seconds, total, samples, changed, {name: count for name, count in failures.items() if count})


def _workers(snapshot: Snapshot) -> Iterator[tuple[Key, Workers]]:
    for name, model in snapshot.models.items():
        for version in model.versions:
            of = version.model
            yield (name, of.version), Workers(of.ready, of.min_workers, of.job_queue.pending_requests)


def _samples(before: Reading, now: Reading, snapshot: Snapshot, seconds: float) -> Iterator[tuple[Key, Sample]]:
    old, new = _by_model(before), _by_model(now)
    nothing = Reading(before.at, ())
    for name, reading in new.items():
        earlier = old.get(name, nothing)
        if name not in snapshot.models or not _increase(earlier, reading, _COUNT):
            continue
        for version in snapshot.models[name].versions:
            load = metrics.load(earlier, reading, name, version.model.version, default=version.default)
            if count := round(load.requests * max(reading.at - earlier.at, 1e-9)):
                latency, queue = ((value or 0.0) / 1000 * count for value in (load.latency, load.queue))
                yield (name, version.model.version), Sample(count, None, None, None, None, latency, queue)


def _by_model(reading: Reading) -> dict[str, Reading]:
    """Return the readings of each model; a search in the whole reading for each model would take too long."""
    samples = defaultdict(list)
    for sample in reading.samples:
        if name := sample.labels.get("model_name") or sample.labels.get("ModelName"):
            samples[name].append(sample)
    return {name: Reading(reading.at, of_model) for name, of_model in samples.items()}


def _increase(before: Reading, now: Reading, name: str) -> int:
    return round(metrics.rate(before, now, name) * max(now.at - before.at, 1e-9))
