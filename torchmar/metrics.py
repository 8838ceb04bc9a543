"""The metrics of a server: Prometheus text to values, and the load between two readings.

TorchServe counts requests and adds up their latency, so that means can be had between two looks, and nothing
else. A handler that measures a histogram called ``HandlerSeconds`` lets percentiles be told::

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
    """One value of a metric, and the labels that tell it from the others of that name."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Reading:
    """What a server's metrics were at a moment, in seconds of a clock that only runs forward."""

    at: float
    samples: Sequence[Sample]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a metric that have these labels."""
        return sum(sample.value for sample in self._of(name, labels))

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Return a histogram: by upper bound, how many values are not above it."""
        found: dict[float, float] = {}
        for sample in self._of(f"{name}_bucket", labels):
            bound = float(sample.labels["le"])
            found[bound] = found.get(bound, 0.0) + sample.value
        return found

    def _of(self, name: str, labels: Mapping[str, str]) -> Iterator[Sample]:
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                yield sample


@dataclass(frozen=True)
class Load:
    """What a model version did between two looks; None for values that were not measured.

    Attributes:
        requests: how many came, a second.
        latency: mean milliseconds of a request in the server. TorchServe adds up those of answered requests and
            counts failed ones too, so that the mean is too small while requests fail.
        queue: mean milliseconds of these that a request waited for a worker.
        p50: the median in milliseconds that the handler took for a batch; of all versions of the model.
        p99: likewise, what 99 of 100 do not exceed.
    """

    requests: float
    latency: float | None
    queue: float | None
    p50: float | None
    p99: float | None


def read(address: str, server: Endpoint) -> Reading:
    """Ask the metrics API at ``address``, which wants no token.

    Raises:
        ConnectError: no server answers there.
        ServerError: it answers with an error.
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
    """Return the samples of Prometheus' text format; a line that is none is left out."""
    found = []
    for line in text.splitlines():
        match = _LINE.match(line.strip())
        if match is None:
            continue
        labels = {name: _unescaped(value) for name, value in _LABEL.findall(match[2] or "")}
        try:
            found.append(Sample(match[1], labels, float(match[3])))
        except ValueError:
            continue
    return found


def load(before: Reading, now: Reading, name: str, version: str, *, default: bool) -> Load:
    """Return the load of a model version between two looks at its server.

    Args:
        before: the first look.
        now: the second.
        name: the model.
        version: the version.
        default: whether requests without a version are its own.
    """

    def grown(metric: str) -> float:
        versions = (version, DEFAULT) if default else (version,)
        return sum(
            _grown(*(one.total(metric, model_name=name, model_version=label) for one in (before, now)))
            for label in versions
        )

    count = grown("ts_inference_requests_total")
    seconds = max(now.at - before.at, 1e-9)
    taken, waited = grown("ts_inference_latency_microseconds"), grown("ts_queue_latency_microseconds")
    old, new = (one.buckets(HISTOGRAM, ModelName=name) for one in (before, now))
    fresh = {bound: _grown(old.get(bound, 0.0), value) for bound, value in new.items()}
    p50, p99 = (None if (at := quantile(fresh, part)) is None else at * 1000 for part in (0.5, 0.99))
    return Load(
        count / seconds,
        taken / count / 1000 if count and taken else None,
        waited / count / 1000 if count and taken else None,
        p50,
        p99,
    )


def rate(before: Reading, now: Reading, name: str) -> float:
    """Return by how much a counter grew a second between two looks."""
    return _grown(before.total(name), now.total(name)) / max(now.at - before.at, 1e-9)


def quantile(buckets: Mapping[float, float], part: float) -> float | None:
    """Return the value that ``part`` of a histogram's values do not exceed; None if it has none.

    Within a bucket values are taken as spread evenly; beyond the last bound the bound itself is
    returned (Prometheus' ``histogram_quantile``).
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    wanted = part * total
    below, counted = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted:
            if math.isinf(bound):
                return below
            inside = buckets[bound] - counted
            return below + (bound - below) * ((wanted - counted) / inside if inside else 1.0)
        below, counted = bound, buckets[bound]
    return below


def _grown(before: float, now: float) -> float:
    # A counter that is smaller than it was belongs to a server that was started again.
    return now - before if now >= before else now


def _unescaped(text: str) -> str:
    return re.sub(r'\\[n"\\]', lambda found: _ESCAPES[found[0]], text)
