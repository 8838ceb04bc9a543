"""The observer of all pools of a server: batches become metrics, and changes of workers metrics and events."""

from __future__ import annotations

from torchmar.server.telemetry.events import Events
from torchmar.server.telemetry.metrics import Metrics


class ServerObserver:
    """A `torchmar.server.workers.pool_options.PoolObserver`.

    Args:
        metrics: receives batches, load times and metrics of handlers.
        events: receives the events of workers.
    """

    def __init__(self, metrics: Metrics, events: Events) -> None:
        self._metrics, self._events = metrics, events
        # Bound directly, because it is called for each batch.
        self.on_batch, self.on_metrics, self.on_unregister = metrics.on_batch, metrics.on_metrics, metrics.on_unregister

    def on_load(self, name: str, version: str, worker: str, seconds: float) -> None:
        """Record that a worker has loaded the model."""
        self._metrics.on_load(name, version, worker, seconds)
        self._events.add("worker_started", f"loaded the model in {seconds:.1f} s", name, version, worker)

    def on_load_failed(self, name: str, version: str, worker: str, failure: str) -> None:
        """Record that a worker could not load the model."""
        last_line = failure.splitlines()[-1].strip() if failure else ""
        self._events.add("load_failed", last_line or "the model did not load", name, version, worker)

    def on_death(self, name: str, version: str, worker: str) -> None:
        """Record that the process of a worker has ended by itself, or was killed because it did not answer."""
        self._events.add("worker_died", "ended while it served, and is started again", name, version, worker)
