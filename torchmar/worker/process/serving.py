"""The loop of a worker: it receives a batch and sends its responses, until the server disconnects."""

from __future__ import annotations

import logging
import socket
import sys
import time
from typing import Any

from . import frames
from .adaptive_threads import AdaptiveThreads
from .batch_runner import BatchRunner, Parts
from .handler_metrics import MetricsBuffer
from .malloc import keep_freed_memory
from .messages import PartHead, Responses, StepTimes
from .request_log import RequestFormatter
from .step_times import StepTimer


def serve(
    service: Any,
    connection: socket.socket,
    metrics: MetricsBuffer,
    threads: int | None = None,
    *,
    isolate: bool = False,
    poll_seconds: float = 0.0,
) -> None:
    """Run batches until the other side closes the connection.

    Args:
        service: a loaded model.
        connection: blocking connection to the server.
        metrics: metrics of the handler, already installed.
        threads: number of torch threads that the handler has set while it loaded; None: it has not set it.
        isolate: whether a failed batch is repeated request by request, which TorchServe does not do.
        poll_seconds: time to busy-poll for the next batch; see `frames.Receiver`.
    """

    def send_part(head: PartHead, bodies: list[Any]) -> None:
        frames.send(connection, frames.encode(frames.PART, head, bodies))

    receiver = frames.Receiver(connection, poll_seconds, keep_freed_memory())
    adaptive = AdaptiveThreads(threads)
    runner = BatchRunner(service, Parts(send_part), isolate=isolate)
    timer = StepTimer(service._entry_point)
    while True:
        try:
            kind, document, bodies = receiver.receive()
        except (frames.DisconnectedError, ConnectionError):
            return
        if kind == frames.THREADS:
            adaptive.limit(document)
            continue
        # All requests of a batch are predictions, or all are explanations.
        adaptive.before(document[0][1].get("explain") == "True", len(document))
        cpu_started = time.process_time()
        steps: StepTimes | None = None
        if kind == frames.TRACED_BATCH:
            with timer.timing() as steps:
                results, seconds = runner.run(document, bodies, timer)
        else:
            results, seconds = runner.run(document, bodies)
        cpu_seconds = time.process_time() - cpu_started
        del bodies  # so that large bodies are not kept while the next batch is received
        responses: Responses = {
            "seconds": seconds,
            "responses": [(status, kind, headers, len(body), error) for status, kind, headers, body, error in results],
            "metrics": metrics.take(),
        }
        if steps is not None:
            responses["steps"] = steps
        try:
            frames.send(connection, frames.encode(frames.RESPONSES, responses, [result[3] for result in results]))
        except ConnectionError:
            return
        adaptive.after(len(document), seconds, cpu_seconds)  # here, while the server has work to do
        del results


def quiet_logging() -> None:
    """Log as TorchServe's workers do: only messages, on standard output, with the ids of traced requests."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(RequestFormatter("%(message)s"))
