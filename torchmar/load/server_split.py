"""The parts of a request's time in the server, from two readings of the server's metrics."""

from __future__ import annotations

from collections.abc import Mapping

from torchmar import metrics
from torchmar.connection import Endpoint
from torchmar.errors import TorchmarError
from torchmar.load.results import ServerSplit
from torchmar.metrics import Reading

_BATCHES = "torchmar_batch_size"
# Gauges of handlers: means since their last update, in milliseconds.
_STEPS = {"preprocess_ms": "DecodeTime", "inference_ms": "InferenceTime", "postprocess_ms": "PostprocessTime"}


def read(address: str | None, server: Endpoint) -> Reading | None:
    """Return the metrics of a server; None without an address, or if there are no metrics at it."""
    if address is None:
        return None
    try:
        return metrics.read(address, server)
    except TorchmarError:
        return None


def between(before: Reading | None, now: Reading | None, model: str, version: str) -> ServerSplit | None:
    """Return the mean times of the requests between two readings; None without both readings.

    Args:
        before: the first reading.
        now: the second.
        model: the name of the model.
        version: its version, including requests without a version; empty: all versions.
    """
    if before is None or now is None:
        return None

    labels = {"model_name": model} | ({"model_version": version} if version else {})

    def increase(metric: str, selection: Mapping[str, str]) -> float:
        return max(0.0, now.total(metric, **selection) - before.total(metric, **selection))

    count = increase("torchmar_request_seconds_count", labels)
    if count:
        total = increase("torchmar_request_seconds_sum", labels) * 1000
        queue = increase("torchmar_queue_seconds_sum", labels) * 1000
    else:  # TorchServe's counters, which have another label for requests without a version
        of_model = {"model_name": model}
        count = increase("ts_inference_requests_total", of_model)
        total = increase("ts_inference_latency_microseconds", of_model) / 1000
        queue = increase("ts_queue_latency_microseconds", of_model) / 1000
    if not count:
        return None
    return ServerSplit(
        total_ms=total / count if total else None,
        queue_ms=queue / count if total else None,
        **{part: _gauge(now, name, model) for part, name in _STEPS.items()},
        batch_sizes=_batch_sizes(before, now, labels),
    )


def _gauge(now: Reading, name: str, model: str) -> float | None:
    values = [sample.value for sample in now.samples if sample.name == name and sample.labels.get("ModelName") == model]
    return sum(values) / len(values) if values else None


def _batch_sizes(before: Reading, now: Reading, labels: Mapping[str, str]) -> dict[int, int] | None:
    old, new = before.buckets(_BATCHES, **labels), now.buckets(_BATCHES, **labels)
    sizes = {}
    below = 0
    for bound in sorted(new):
        cumulative = round(new[bound] - old.get(bound, 0.0))
        if cumulative > below:
            sizes[0 if bound == float("inf") else int(bound)] = cumulative - below
        below = max(below, cumulative)
    return sizes or None
