"""Metrics of the server and its handlers, in TorchServe's format at ``/metrics``.

In addition to TorchServe's own, there are three histograms, with ``model_name`` and ``model_version``:
``torchmar_queue_seconds``, ``torchmar_request_seconds`` and ``torchmar_batch_size``.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

from torchmar.server.telemetry import logs
from torchmar.server.telemetry.metrics_config import DEFAULT, MetricsConfig, described
from torchmar.server.telemetry.prometheus import Child, Histogram, Kind, Metric, MetricSpec
from torchmar.server.telemetry.statistics import Statistics
from torchmar.server.telemetry.system_metrics import SystemMetrics

_VERSION = ("model_name", "model_version")
#: Upper bounds of the buckets of durations, and of sizes of batches.
LATENCY_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
_QUEUE = MetricSpec(
    "torchmar_queue_seconds", "histogram", "Seconds that a request waited for a worker", _VERSION, LATENCY_SECONDS
)
_REQUEST = MetricSpec(
    "torchmar_request_seconds", "histogram", "Seconds from a request's arrival to its answer", _VERSION, LATENCY_SECONDS
)
_BATCH = MetricSpec("torchmar_batch_size", "histogram", "Requests that a worker got at once", _VERSION, BATCH_SIZES)

_REQUESTS = "ts_inference_requests_total"
_LATENCY_US, _QUEUE_US = "ts_inference_latency_microseconds", "ts_queue_latency_microseconds"

#: Values of a metric, by the values of its labels.
Values = Mapping[tuple[str, ...], float]

# Reasons for rejected updates, each logged once per model.
_Fault = Literal["name", "labels", "limit"]


class VersionCounters(NamedTuple):
    """The counters of a version, which never decrease.

    Attributes:
        statistics: counters of its requests and batches.
        latency: histogram of its requests, from their arrival to the end of the handler, in seconds.
        queue: histogram of its requests, until they were sent to a worker, in seconds.
        batches: histogram of its batches, by size.
    """

    statistics: Statistics
    latency: Histogram
    queue: Histogram
    batches: Histogram


class Metrics:
    """The metrics of one server. All methods are called in the server's loop.

    Args:
        config: metrics to show; default: TorchServe's.
        auto_detect: whether to show metrics of handlers that ``config`` lacks (``model_metrics_auto_detect``).
        machine: whether to collect metrics of the machine (not ``disable_system_metrics``).
        limit: largest number of series from the handlers of one model, because each stays in memory; more are ignored.
    """

    def __init__(
        self, config: MetricsConfig = DEFAULT, *, auto_detect: bool = False, machine: bool = True, limit: int = 1000
    ) -> None:
        self._hostname = socket.gethostname()
        self._auto_detect, self._limit = auto_detect, limit
        self._metrics = {spec.name: Metric(spec) for spec in (*config.server, *config.models)}
        self._queue, self._request, self._batch = histograms = [Metric(spec) for spec in (_QUEUE, _REQUEST, _BATCH)]
        self._metrics |= {metric.spec.name: metric for metric in histograms}
        self._counters: list[tuple[Child, Callable[[], int]]] = []
        self._measured: list[tuple[Metric, Callable[[], Values]]] = []
        self._server_names = self._metrics.keys() - {spec.name for spec in config.models}
        self._permanent_names = frozenset(self._metrics)
        self._versions: dict[tuple[str, str], _VersionMetrics] = {}
        # Metrics of handlers, by name and values of the labels; and these keys by model.
        self._custom: dict[tuple[str, ...], Child] = {}
        self._custom_keys: dict[str, set[tuple[str, ...]]] = {}
        self._logged: set[tuple[str, _Fault]] = set()
        self._machine = SystemMetrics() if machine else None
        self._answers = [self._of(f"Requests{group}XX", "Host", self._hostname) for group in "245"]
        self._last_queue = self._of("QueueTime", "Host", self._hostname)

    # Updates.

    def answered(self, status: int) -> None:
        """Count a response of any API."""
        group = status // 100
        self._answers[0 if group == 2 else 1 if group == 4 else 2].add(1)

    def request(self, name: str, version: str, status: int, seconds: float = 0.0) -> None:
        """Count the response to a request for a model; `answered` is not called for it.

        Args:
            name: the model.
            version: its version.
            status: status of the response.
            seconds: time from the request to the response.
        """
        children = self._versions.get((name, version)) or self._version(name, version)
        children.requests.add(1)
        children.statistics.request(status, seconds)
        group = status // 100
        self._answers[0 if group == 2 else 1 if group == 4 else 2].add(1)

    def on_batch(
        self, name: str, version: str, size: int, queue_seconds: Sequence[float], handler_seconds: float
    ) -> None:
        """Count a batch that a worker has answered.

        Args:
            name: the model.
            version: its version.
            size: the number of requests.
            queue_seconds: times of the requests until the batch was sent.
            handler_seconds: time of the handler for the whole batch.
        """
        children = self._versions.get((name, version)) or self._version(name, version)
        queue, request = children.queue.add, children.request.add
        queue_us, latency_us = children.queue_us.add, children.latency_us.add
        for seconds in queue_seconds:
            latency = seconds + handler_seconds
            queue(seconds)
            request(latency)
            queue_us(seconds * 1e6)
            latency_us(latency * 1e6)
        children.batch.add(size)
        children.statistics.batch(size, queue_seconds, handler_seconds)
        children.prediction_ms.add(round(handler_seconds * 1000, 2))
        if queue_seconds:
            self._last_queue.add(round(queue_seconds[-1] * 1000))

    def on_load(self, name: str, version: str, worker: str, seconds: float) -> None:
        """Record the time that a worker took to load its model."""
        title = f"W-{worker}-{name}_{version}"
        self._of("WorkerLoadTime", title, "Host", self._hostname).add(round(seconds * 1000))
        self._version(name, version).workers.add(title)

    def on_metrics(self, name: str, version: str, updates: Iterable[Sequence[Any]]) -> None:
        """Record metrics of a handler.

        Args:
            name: the model.
            version: its version.
            updates: each is ``[name, unit, value, type, [[dimension, value], ...]]``; the type is
                ``COUNTER``, ``GAUGE`` or ``HISTOGRAM``. The first update of a name defines the metric. Updates that
                Prometheus cannot represent are left out, and so are those beyond the limit.
        """
        for metric, unit, value, kind, dimensions in updates:
            if not self._auto_detect and metric not in self._metrics:
                continue
            key = (metric, *[text for _, text in dimensions])
            child = self._custom.get(key)
            if child is None:
                labels = tuple(label for label, _ in dimensions)
                child = self._new_custom(name, key, unit, str(kind).lower(), labels)
            if child is not None and math.isfinite(value):
                child.add(value)

    def on_unregister(self, name: str, version: str) -> None:
        """Drop the metrics of an unregistered version, and with the last version those of the model's handlers."""
        children = self._versions.pop((name, version), None)
        if children is None:
            return
        for family in (self._queue, self._request, self._batch):
            family.drop(name, version)
        for metric in (_REQUESTS, _LATENCY_US, _QUEUE_US):
            self._drop(metric, name, version, self._hostname)
        for title in children.workers:
            self._drop("WorkerLoadTime", title, "Host", self._hostname)
        if any(other == name for other, _ in self._versions):
            return
        self._drop("PredictionTime", name, "Model", self._hostname)
        for key in self._custom_keys.pop(name, ()):
            del self._custom[key]
            self._drop(*key, self._hostname)
        self._logged -= {(name, fault) for fault in get_args(_Fault)}

    def statistics(self, name: str, version: str) -> Statistics:
        """Return the statistics of a version."""
        return self._version(name, version).statistics

    def counters(self, name: str, version: str) -> VersionCounters | None:
        """Return the counters of a version; None: it has answered no request."""
        if (children := self._versions.get((name, version))) is None:
            return None
        histograms = (cast(Histogram, child) for child in (children.request, children.queue, children.batch))
        return VersionCounters(children.statistics, *histograms)

    # Output.

    def add_counter(self, name: str, help: str, count: Callable[[], int]) -> None:
        """Show a counter without labels, whose value is read whenever the metrics are read."""
        self._metrics[name] = metric = Metric(MetricSpec(name, "counter", help, ()))
        self._server_names.add(name)
        self._permanent_names |= {name}
        self._counters.append((metric.of(), count))

    def add_measured(self, spec: MetricSpec, measure: Callable[[], Values]) -> None:
        """Show a metric whose series are measured whenever the metrics are read; earlier series are dropped."""
        self._metrics[spec.name] = metric = Metric(spec)
        self._server_names.add(spec.name)
        self._permanent_names |= {spec.name}
        self._measured.append((metric, measure))

    def text(self, names: Collection[str] = ()) -> str:
        """Return all metrics in Prometheus' text format, or only the lines with one of ``names``."""
        for child, count in self._counters:
            child.value = count()
        for metric, measure in self._measured:
            metric.series.clear()
            for labels, number in measure().items():
                metric.of(*labels).value = number
        if self._machine:
            for name, value in self._machine.collect():
                self._of(name, "Host", self._hostname).add(value)
            for index, name, value in self._machine.gpus():
                self._of(name, "Host", index, self._hostname).add(value)
        return "".join(family.text(names) for family in self._metrics.values())

    def _version(self, name: str, version: str) -> _VersionMetrics:
        children = self._versions.get((name, version))
        if children is None:
            self._versions[name, version] = children = _VersionMetrics(self, name, version)
        return children

    def _of(self, metric: str, *values: str) -> Child:
        """Return a child of a metric; a hidden one if the configuration lacks the metric or has other labels."""
        family = self._metrics.get(metric)
        if family is None or len(family.spec.labels) != len(values):
            return Child()
        return family.of(*values)

    def _drop(self, metric: str, *values: str) -> None:
        if family := self._metrics.get(metric):
            family.drop(*values)
            if not family.series and metric not in self._permanent_names:
                del self._metrics[metric]

    # Metrics of handlers.

    def _new_custom(
        self, name: str, key: tuple[str, ...], unit: str, kind: str, labels: tuple[str, ...]
    ) -> Child | None:
        """Return a new child for the updates of a key; None if these are ignored."""
        metric, *values = key
        family = self._metrics.get(metric)
        if family is None:
            spec = MetricSpec(metric, cast(Kind, kind), described(kind, unit), (*labels, "Hostname"))
            if not spec.sound or kind not in get_args(Kind) or any(self._is_taken(line) for line in spec.names):
                self._warn_once(name, "name", f"{metric}: Prometheus has no such names, or another metric has it")
                return None
            family = Metric(spec)
        elif metric in self._server_names:
            self._warn_once(name, "name", f"{metric}: it is the server's own")
            return None
        elif len(family.spec.labels) != len(values) + 1:
            message = f"{metric}: it has the labels {', '.join(family.spec.labels)}, and this is of {', '.join(labels)}"
            self._warn_once(name, "labels", message)
            return None
        keys = self._custom_keys.setdefault(name, set())
        if len(keys) >= self._limit:
            self._warn_once(name, "limit", f"{metric}: there are {self._limit} series of this model already")
            return None
        self._metrics[metric] = family
        keys.add(key)
        self._custom[key] = child = family.of(*values, self._hostname)
        return child

    def _is_taken(self, line: str) -> bool:
        return any(line in family.spec.names for family in self._metrics.values())

    def _warn_once(self, name: str, fault: _Fault, message: str) -> None:
        if (name, fault) not in self._logged:
            self._logged.add((name, fault))
            logs.SERVER.warning("model %s: metrics are left out; the first is %s", name, message, extra={"model": name})


class _VersionMetrics:
    """The children of a version, looked up once."""

    __slots__ = (
        *("batch", "latency_us", "prediction_ms", "queue", "queue_us", "request", "requests", "statistics", "workers"),
    )

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        host = metrics._hostname
        self.requests = metrics._of(_REQUESTS, name, version, host)
        self.latency_us = metrics._of(_LATENCY_US, name, version, host)
        self.queue_us = metrics._of(_QUEUE_US, name, version, host)
        self.prediction_ms = metrics._of("PredictionTime", name, "Model", host)
        self.queue = metrics._queue.of(name, version)
        self.request = metrics._request.of(name, version)
        self.batch = metrics._batch.of(name, version)
        self.workers: set[str] = set()
        self.statistics = Statistics()
