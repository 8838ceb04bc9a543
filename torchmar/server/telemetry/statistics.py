"""Request counts and durations of a version, as in Triton's statistics extension.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any


class _Duration:
    """The number of occurrences and their total time."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.seconds += seconds

    def document(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


class Statistics:
    """The statistics of one version since it was registered.

    Attributes:
        failures: number of failed requests, by HTTP status.
    """

    __slots__ = ("_batches", "_compute", "_fail", "_last", "_queue", "_success", "failures")

    def __init__(self) -> None:
        self.failures: dict[int, int] = {}
        self._success, self._fail, self._queue, self._compute = (_Duration() for _ in range(4))
        self._batches: dict[int, _Duration] = {}
        self._last = 0.0  # time of the last request, in seconds since 1970

    def batch(self, size: int, queue_seconds: Sequence[float], handler_seconds: float) -> None:
        """Count a batch that a worker has answered; see `torchmar.server.telemetry.metrics.Metrics.batch`."""
        self._queue.add(sum(queue_seconds), size)
        self._compute.add(handler_seconds * size, size)
        batches = self._batches.get(size)
        if batches is None:
            batches = self._batches[size] = _Duration()
        batches.add(handler_seconds)
        self._last = time.time()

    def request(self, status: int, seconds: float) -> None:
        """Count a request, with the HTTP status of its answer and its duration in seconds."""
        if 200 <= status < 300:
            self._success.add(seconds)
        else:
            self._fail.add(seconds)
            self.failures[status] = self.failures.get(status, 0) + 1

    @property
    def succeeded(self) -> int:
        """The number of requests that were answered with a status of 2xx."""
        return self._success.count

    def document(self) -> dict[str, Any]:
        """Return the statistics with Triton's keys.

        The handler's time is ``compute_infer``, because the server does not know its steps.
        """
        nothing = _Duration().document()
        executions = sum(batch.count for batch in self._batches.values())
        return {
            "last_inference": round(self._last * 1000),
            "inference_count": self._compute.count,
            "execution_count": executions,
            "inference_stats": {
                "success": self._success.document(),
                "fail": self._fail.document(),
                "queue": self._queue.document(),
                "compute_input": nothing,
                "compute_infer": self._compute.document(),
                "compute_output": nothing,
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": nothing,
                    "compute_infer": durations.document(),
                    "compute_output": nothing,
                }
                for size, durations in sorted(self._batches.items())
            ],
        }
