"""Metrics of handlers, buffered for the next response."""

from __future__ import annotations

import logging
from typing import Any

from .messages import MetricUpdate

_LIMIT = 10_000  # updates between two responses, so that a handler that measures in a loop does not fill the memory


class MetricsBuffer:
    """The metric updates since the last response."""

    def __init__(self) -> None:
        self._updates: list[MetricUpdate] = []

    def install(self) -> None:
        """Redirect all metrics of TorchServe's API into this buffer."""
        from ts.metrics.caching_metric import CachingMetric

        def add_or_update(
            metric: Any, value: float, dimension_values: list[Any] | None = None, request_id: str = ""
        ) -> None:
            values, names, kind = dimension_values or [], metric.dimension_names, metric.metric_type.name
            if len(values) != len(names) or (kind == "COUNTER" and value < 0):
                message = "metric %s of %r is left out: dimensions %s for %s"
                logging.error(message, metric.metric_name, value, values, names)
                return
            pairs = list(zip(names, map(str, values), strict=True))
            if len(self._updates) < _LIMIT:
                self._updates.append((metric.metric_name, metric.unit, float(value), kind, pairs))

        CachingMetric.add_or_update = add_or_update

    def take(self) -> list[MetricUpdate]:
        """Return the updates, and remove them from the buffer."""
        updates, self._updates = self._updates, []
        return updates
