"""The metrics of a handler's batches, through TorchServe's metrics."""

from __future__ import annotations

import time
from typing import Any

from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

# A metric is a line of log that the server parses, 30 to 60 microseconds each: for a small model
# six lines a batch would cost as much as the model. Gauges are read only every few seconds.
_SECONDS_BETWEEN = 0.25


class Metrics:
    """The measurements of a worker's batches.

    Updated for every batch: ``HandlerSeconds`` (a histogram for percentiles; in seconds, because
    the bounds of TorchServe's histograms are in seconds) and ``RejectedRequests`` if there are some. Updated at
    most four times a second, as means of the batches since: ``HandlerTime``, ``DecodeTime``, ``InferenceTime``,
    ``PostprocessTime`` (milliseconds) and ``RequestBatchSize``.
    """

    def __init__(self) -> None:
        self._metrics: Any = None
        self._seconds: Any = None
        self._reported = 0.0
        self._batches = self._requests = 0
        self._total = self._decoding = self._inference = 0.0

    def add(self, metrics: Any, *, size: int, rejected: int, total: float, decoding: float, inference: float) -> None:
        """Add one batch to the metrics.

        Args:
            metrics: metrics of TorchServe's context.
            size: number of requests in the batch.
            rejected: number of requests that were answered with 4xx.
            total: seconds for the whole batch.
            decoding: seconds for decoding, part of the total.
            inference: seconds for the model, part of the total.
        """
        if metrics is not self._metrics:
            self._metrics, self._seconds = metrics, _histogram(metrics, "HandlerSeconds", "s")
        # The same as metrics.add_metric, which searches metric and dimensions in each call.
        request_ids = ",".join(metrics.request_ids.values()) if metrics.request_ids else ""
        self._seconds.add_or_update(round(total, 6), [metrics.model_name, "Model"], request_ids)
        if rejected:
            metrics.add_counter("RejectedRequests", rejected)
        self._batches += 1
        self._requests += size
        self._total += total
        self._decoding += decoding
        self._inference += inference
        now = time.monotonic()
        if now - self._reported >= _SECONDS_BETWEEN:
            self._reported = now
            self._report(metrics)

    def _report(self, metrics: Any) -> None:
        """Update the means of the batches since the last call."""
        batches = self._batches
        for name, seconds in (
            ("HandlerTime", self._total),
            ("DecodeTime", self._decoding),
            ("InferenceTime", self._inference),
            ("PostprocessTime", self._total - self._decoding - self._inference),
        ):
            metrics.add_time(name, round(seconds * 1000 / batches, 2), None, "ms")
        size = round(self._requests / batches, 2)
        metrics.add_metric("RequestBatchSize", size, "count", metric_type=MetricTypes.GAUGE)
        self._batches = self._requests = 0
        self._total = self._decoding = self._inference = 0.0


def _histogram(metrics: Any, name: str, unit: str) -> Any:
    """Return a histogram with the dimensions that TorchServe gives metrics of models."""
    try:
        return metrics.get_metric(name, MetricTypes.HISTOGRAM)
    except MetricsCacheKeyError:
        return metrics.add_metric_to_cache(name, unit, ["ModelName", "Level"], MetricTypes.HISTOGRAM)
