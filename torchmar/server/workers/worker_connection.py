"""The socket of one worker: it sends batches to the process, and receives frames from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torchmar.server.workers.frame_connection import FrameConnection
from torchmar.server.workers.jobs import Job
from torchmar.worker.process import frames


class WorkerConnection(FrameConnection):
    """A connection to a worker.

    Args:
        on_open: called when the connection is made.
        on_frame: called with kind, document and bodies of each frame.
        on_close: called when either side has closed the connection.
    """

    def __init__(
        self,
        on_open: Callable[[], None],
        on_frame: Callable[[int, Any, Sequence[bytes]], None],
        on_close: Callable[[], None],
    ) -> None:
        super().__init__(on_open, on_frame, on_close)
        self._threads = 0

    def send_batch(self, batch: Sequence[Job]) -> None:
        """Send a BATCH frame."""
        document = []
        bodies: list[Any] = []
        kind = frames.BATCH
        for job in batch:
            document.append([job.request_id, job.headers, [(part[0], part[1], len(part[2])) for part in job.inputs]])
            bodies += [part[2] for part in job.inputs]
            if job.spans is not None:
                kind = frames.TRACED_BATCH
                job.spans.begin_batch()
        self.send(kind, document, bodies)

    def limit_threads(self, count: int) -> None:
        """Send a THREADS frame if the limit changes."""
        if count != self._threads:
            self._threads = count
            self.send(frames.THREADS, count)
