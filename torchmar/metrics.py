"""The metrics of a server: the parsing of Prometheus' text format, and the load between two readings.

TorchServe has counters of requests and of their latency, from which two readings give means, but no percentiles.
Percentiles need a histogram ``HandlerSeconds``, which a handler measures::

    context.metrics.add_metric("HandlerSeconds", seconds, "s", metric_type=MetricTypes.HISTOGRAM)

The text format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torchmar.connection import Endpoint
from torchmar.connection.transport import Transport
from torchmar.errors import ServerError

HISTOGRAM = "HandlerSeconds"
DEFAULT = "default"  # TorchServe's label for requests without a version
_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'\s*([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"\s*,?')
_ESCAPES = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}
_SECONDS = 5.0


@dataclass(frozen=True)
class Sample:
    """One value of a metric, with its labels."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Reading:
    """All metrics of a server at one time; ``at`` is in seconds of a monotonic clock."""

    at: float
    samples: Sequence[Sample]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a metric with these labels."""
        return sum(sample.value for sample in self._of(name, labels))

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Return a histogram: for each upper bound, the number of values up to it."""
        counts: dict[float, float] = {}
        for sample in self._of(f"{name}_bucket", labels):
            bound = float(sample.labels["le"])
            counts[bound] = counts.get(bound, 0.0) + sample.value
        return counts

    def _of(self, name: str, labels: Mapping[str, str]) -> Iterator[Sample]:
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                yield sample


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load of a model version between two readings; None for values that were not measured.

    Attributes:
        requests: requests per second.
        latency: mean latency of a request in the server, in milliseconds. TorchServe counts failed requests, but not
            their latency, so that the mean is too small if requests fail.
        queue: mean wait of a request for a worker, in milliseconds.
        p50: median time of a batch in the handler, in milliseconds, over all versions of the model.
        p99: 99th percentile of this time.
    """

    requests: float
    latency: float | None
    queue: float | None
    p50: float | None
    p99: float | None


def read(address: str, server: Endpoint) -> Reading:
    """Read the metrics API at ``address``, which needs no token.

    Raises:
        ConnectError: no server answers at the address.
        ServerError: the response is an error.
    """
    transport = Transport(address, "metrics API", server)
    try:
        response = transport.send("GET", "/metrics", timeout=_SECONDS)
    finally:
        transport.close()
    if response.status_code != 200:
        hint = "enable_metrics_api=true and metrics_mode=prometheus in config.properties turn them on"
        raise ServerError(f"no metrics at {address}: {response.reason}", status=response.status_code, hint=hint)
    return Reading(time.monotonic(), parse(response.text))


def parse(text: str) -> list[Sample]:
    """Return the samples of a text in Prometheus' format; other lines are skipped."""
    samples = []
    for line in text.splitlines():
        match = _LINE.match(line.strip())
        if match is None:
            continue
        labels = {name: _unescape(value) for name, value in _LABEL.findall(match[2] or "")}
        try:
            samples.append(Sample(match[1], labels, float(match[3])))
        except ValueError:
            continue
    return samples


def load(before: Reading, now: Reading, name: str, version: str, *, default: bool) -> Load:
    """Return the load of a model version between two readings.

    Args:
        before: the first reading.
        now: the second reading.
        name: name of the model.
        version: version of the model.
        default: whether it answers requests without a version.
    """

    def increase(metric: str) -> float:
        versions = (version, DEFAULT) if default else (version,)
        return sum(
            _increase(*(reading.total(metric, model_name=name, model_version=label) for reading in (before, now)))
            for label in versions
        )

    count = increase("ts_inference_requests_total")
    seconds = max(now.at - before.at, 1e-9)
    latency_us, queue_us = increase("ts_inference_latency_microseconds"), increase("ts_queue_latency_microseconds")
    old, new = (reading.buckets(HISTOGRAM, ModelName=name) for reading in (before, now))
    between = {bound: _increase(old.get(bound, 0.0), value) for bound, value in new.items()}
    p50, p99 = (None if (at := quantile(between, part)) is None else at * 1000 for part in (0.5, 0.99))
    return Load(
        requests=count / seconds,
        latency=latency_us / count / 1000 if count and latency_us else None,
        queue=queue_us / count / 1000 if count and latency_us else None,
        p50=p50,
        p99=p99,
    )


def rate(before: Reading, now: Reading, name: str) -> float:
    """Return the increase of a counter per second between two readings."""
    return _increase(before.total(name), now.total(name)) / max(now.at - before.at, 1e-9)


def quantile(buckets: Mapping[float, float], part: float) -> float | None:
    """Return the quantile ``part`` of a histogram; None if the histogram is empty.

    A uniform distribution is assumed within a bucket; above the last finite bound, this bound is
    returned, as by Prometheus' ``histogram_quantile``.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    target = part * total
    below, counted = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= target:
            if math.isinf(bound):
                return below
            count = buckets[bound] - counted
            return below + (bound - below) * ((target - counted) / count if count else 1.0)
        below, counted = bound, buckets[bound]
    return below


def _increase(before: float, now: float) -> float:
    # A smaller value means that the server was restarted.
    return now - before if now >= before else now


def _unescape(text: str) -> str:
    return re.sub(r'\\[n"\\]', lambda match: _ESCAPES[match[0]], text)
