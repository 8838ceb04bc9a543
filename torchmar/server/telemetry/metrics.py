"""Metrics of the server and its handlers, rendered as TorchServe does at ``/metrics``.

Besides TorchServe's own there are three histograms, with ``model_name`` and ``model_version``:
``torchmar_queue_seconds``, ``torchmar_request_seconds`` and ``torchmar_batch_size``.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, cast, get_args

from torchmar.server.telemetry import logs
from torchmar.server.telemetry.metrics_config import DEFAULT, MetricsConfig, described
from torchmar.server.telemetry.prometheus import Child, Kind, Metric, MetricSpec
from torchmar.server.telemetry.statistics import Statistics
from torchmar.server.telemetry.system_metrics import SystemMetrics

_VERSION = ("model_name", "model_version")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
_QUEUE = MetricSpec(
    "torchmar_queue_seconds", "histogram", "Seconds that a request waited for a worker", _VERSION, _SECONDS
)
_REQUEST = MetricSpec(
    "torchmar_request_seconds", "histogram", "Seconds from a request's coming to its answer", _VERSION, _SECONDS
)
_BATCH = MetricSpec("torchmar_batch_size", "histogram", "Requests that a worker got at once", _VERSION, _SIZES)

_REQUESTS = "ts_inference_requests_total"
_TOOK, _WAITED = "ts_inference_latency_microseconds", "ts_queue_latency_microseconds"

# Rejected updates, each logged once per model.
_Fault = Literal["name", "labels", "limit"]


class Metrics:
    """The counts of one server. Everything is called in the server's loop.

    Args:
        config: what to show; default: what TorchServe does.
        auto_detect: whether what handlers measure is shown though ``config`` has it not
            (``model_metrics_auto_detect``).
        machine: whether the machine is looked at (not ``disable_system_metrics``).
        limit: how many series one model's handlers may have, for each is kept; more are left out.
    """

    def __init__(
        self, config: MetricsConfig = DEFAULT, *, auto_detect: bool = False, machine: bool = True, limit: int = 1000
    ) -> None:
        self._hostname = socket.gethostname()
        self._auto_detect, self._limit = auto_detect, limit
        self._families = {spec.name: Metric(spec) for spec in (*config.server, *config.models)}
        self._queue, self._request, self._batch = ours = [Metric(spec) for spec in (_QUEUE, _REQUEST, _BATCH)]
        self._families |= {family.spec.name: family for family in ours}
        self._own = self._families.keys() - {spec.name for spec in config.models}
        self._always = frozenset(self._families)
        self._versions: dict[tuple[str, str], _Version] = {}
        # By metric and values of labels; and which of these a model has.
        self._custom: dict[tuple[str, ...], Child] = {}
        self._owned: dict[str, set[tuple[str, ...]]] = {}
        self._told: set[tuple[str, _Fault]] = set()
        self._machine = SystemMetrics() if machine else None
        self._answers = [self._of(f"Requests{group}XX", "Host", self._hostname) for group in "245"]
        self._last_queue = self._of("QueueTime", "Host", self._hostname)

    # What is counted.

    def answered(self, status: int) -> None:
        """Count an answer of any API."""
        group = status // 100
        self._answers[0 if group == 2 else 1 if group == 4 else 2].add(1)

    def request(self, name: str, version: str, status: int, seconds: float = 0.0) -> None:
        """Count an answered request to a model; no other call counts it.

        Args:
            name: the model.
            version: the version that it went to.
            status: of the answer.
            seconds: what it took.
        """
        to = self._versions.get((name, version)) or self._version(name, version)
        to.requests.add(1)
        to.statistics.request(status, seconds)
        group = status // 100
        self._answers[0 if group == 2 else 1 if group == 4 else 2].add(1)

    def on_batch(
        self, name: str, version: str, size: int, queue_seconds: Sequence[float], handler_seconds: float
    ) -> None:
        """Count a batch that a worker has answered.

        Args:
            name: the model.
            version: the version.
            size: how many requests it had.
            queue_seconds: how long each waited.
            handler_seconds: what the handler took for all of them.
        """
        to = self._versions.get((name, version)) or self._version(name, version)
        queue, request, waited, took = to.queue.add, to.request.add, to.waited.add, to.took.add
        for seconds in queue_seconds:
            all_of_it = seconds + handler_seconds
            queue(seconds)
            request(all_of_it)
            waited(seconds * 1e6)
            took(all_of_it * 1e6)
        to.batch.add(size)
        to.statistics.batch(size, queue_seconds, handler_seconds)
        to.predicted.add(round(handler_seconds * 1000, 2))
        if queue_seconds:
            self._last_queue.add(round(queue_seconds[-1] * 1000))

    def on_load(self, name: str, version: str, worker: str, seconds: float) -> None:
        """Record the time in which a worker has loaded its model."""
        title = f"W-{worker}-{name}_{version}"
        self._of("WorkerLoadTime", title, "Host", self._hostname).add(round(seconds * 1000))
        self._version(name, version).workers.add(title)

    def on_metrics(self, name: str, version: str, updates: Iterable[Sequence[Any]]) -> None:
        """Record metrics of a handler.

        Args:
            name: the model.
            version: the version.
            updates: ``[name, unit, value, type, [[dimension, value], ...]]`` each, the type
                ``COUNTER``, ``GAUGE`` or ``HISTOGRAM``. The first update of a name defines the metric. Updates that
                Prometheus cannot represent are left out, as are those beyond the limits of their number.
        """
        for metric, unit, value, kind, dimensions in updates:
            key = (metric, *[one for _, one in dimensions])
            series = self._custom.get(key)
            if series is None:
                labels = tuple(label for label, _ in dimensions)
                series = self._admitted(name, key, unit, str(kind).lower(), labels)
            if series is not None and math.isfinite(value):
                series.add(value)

    def on_unregister(self, name: str, version: str) -> None:
        """Drop the metrics of an unregistered version, and with the last version those of the model's handlers."""
        one = self._versions.pop((name, version), None)
        if one is None:
            return
        for family in (self._queue, self._request, self._batch):
            family.drop(name, version)
        for metric in (
            "ts_inference_requests_total",
            "ts_inference_latency_microseconds",
            "ts_queue_latency_microseconds",
        ):
            self._drop(metric, name, version, self._hostname)
        for title in one.workers:
            self._drop("WorkerLoadTime", title, "Host", self._hostname)
        if any(other == name for other, _ in self._versions):
            return
        self._drop("PredictionTime", name, "Model", self._hostname)
        for key in self._owned.pop(name, ()):
            del self._custom[key]
            self._drop(*key, self._hostname)
        self._told -= {(name, fault) for fault in get_args(_Fault)}

    def statistics(self, name: str, version: str) -> Statistics:
        """Return the statistics of a version."""
        return self._version(name, version).statistics

    # What is shown.

    def text(self, names: Collection[str] = ()) -> str:
        """Return all metrics in Prometheus' text format, or the lines that have one of ``names``."""
        if self._machine:
            for metric, value in self._machine.collect():
                self._of(metric, "Host", self._hostname).add(value)
            for index, metric, value in self._machine.gpus():
                self._of(metric, "Host", index, self._hostname).add(value)
        return "".join(family.text(names) for family in self._families.values())

    def _version(self, name: str, version: str) -> _Version:
        one = self._versions.get((name, version))
        if one is None:
            self._versions[name, version] = one = _Version(self, name, version)
        return one

    def _of(self, metric: str, *values: str) -> Child:
        """Return a child of a metric; a hidden one if the configuration lacks the metric or has other labels."""
        family = self._families.get(metric)
        if family is None or len(family.spec.labels) != len(values):
            return Child()
        return family.of(*values)

    def _drop(self, metric: str, *values: str) -> None:
        if family := self._families.get(metric):
            family.drop(*values)
            if not family.series and metric not in self._always:
                del self._families[metric]

    # What handlers measure.

    def _admitted(self, name: str, key: tuple[str, ...], unit: str, kind: str, labels: tuple[str, ...]) -> Child | None:
        """Return the series that an update is for; None if it is for none."""
        metric, *values = key
        family = self._families.get(metric)
        if family is None:
            if not self._auto_detect:
                return None
            spec = MetricSpec(metric, cast(Kind, kind), described(kind, unit), (*labels, "Hostname"))
            if not spec.sound or kind not in get_args(Kind) or any(self._taken(one) for one in spec.names):
                self._tell(name, "name", f"{metric}: Prometheus has no such names, or another metric has it")
                return None
            family = Metric(spec)
        elif metric in self._own:
            self._tell(name, "name", f"{metric}: it is the server's own")
            return None
        elif len(family.spec.labels) != len(values) + 1:
            message = f"{metric}: it has the labels {', '.join(family.spec.labels)}, and this is of {', '.join(labels)}"
            self._tell(name, "labels", message)
            return None
        owned = self._owned.setdefault(name, set())
        if len(owned) >= self._limit:
            self._tell(name, "limit", f"{metric}: there are {self._limit} series of this model already")
            return None
        self._families[metric] = family
        owned.add(key)
        self._custom[key] = series = family.of(*values, self._hostname)
        return series

    def _taken(self, line: str) -> bool:
        return any(line in family.spec.names for family in self._families.values())

    def _tell(self, name: str, fault: _Fault, message: str) -> None:
        if (name, fault) not in self._told:
            self._told.add((name, fault))
            logs.SERVER.warning("model %s: metrics are left out; the first is %s", name, message, extra={"model": name})


class _Version:
    """The series of a version, looked up once."""

    __slots__ = ("batch", "predicted", "queue", "request", "requests", "statistics", "took", "waited", "workers")

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        host = metrics._hostname
        self.requests = metrics._of("ts_inference_requests_total", name, version, host)
        self.took = metrics._of("ts_inference_latency_microseconds", name, version, host)
        self.waited = metrics._of("ts_queue_latency_microseconds", name, version, host)
        self.predicted = metrics._of("PredictionTime", name, "Model", host)
        self.queue = metrics._queue.of(name, version)
        self.request = metrics._request.of(name, version)
        self.batch = metrics._batch.of(name, version)
        self.workers: set[str] = set()
        self.statistics = Statistics()
