"""The log of one worker: the output of its process, and its entries in the server's log."""

from __future__ import annotations

from torchmar.server.telemetry import logs
from torchmar.server.workers.pool_options import PoolOptions


class WorkerLog:
    """The log of one worker of a version."""

    def __init__(self, worker_id: str, options: PoolOptions) -> None:
        self._id, self._name, self._version = worker_id, options.name, options.version

    def output(self, line: str) -> None:
        """Log a line of the worker's output."""
        logs.log_worker_output(self._id, self._name, self._version, line)

    def server(self, level: int, text: str) -> None:
        """Log a sentence about the worker in the server's log, after the name of the worker."""
        extra = {"model": self._name, "version": self._version, "worker": self._id}
        logs.SERVER.log(level, "%s %s worker %s %s", self._name, self._version, self._id, text, extra=extra)
