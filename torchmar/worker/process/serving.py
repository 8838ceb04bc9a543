"""The loop of a worker: receive a batch, send its responses, until the server disconnects."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from . import frames
from .adaptive_threads import AdaptiveThreads
from .batch_runner import BatchRunner, Parts
from .handler_metrics import MetricsBuffer


def serve(
    service: Any,
    connection: socket.socket,
    measured: MetricsBuffer,
    threads: int | None = None,
    *,
    isolate: bool = False,
    poll: float = 0.0,
) -> None:
    """Answer batches until the other side closes the connection.

    Args:
        service: a loaded model.
        connection: to the server; blocking.
        measured: where metrics of handlers come, installed already.
        threads: that the handler has asked of torch while it loaded; None: it has not.
        isolate: whether a batch that fails is asked again, each request alone; TorchServe does not.
        poll: seconds to stay awake for the next batch; see `frames.Receiver`.
    """

    def part(document: Any, bodies: list[Any]) -> None:
        frames.send(connection, frames.encode(frames.PART, document, bodies))

    receiver = frames.Receiver(connection, poll, _give_back())
    adaptive = AdaptiveThreads(threads)
    answering = BatchRunner(service, Parts(part), isolate=isolate)
    while True:
        try:
            kind, document, bodies = receiver.receive()
        except (frames.Gone, ConnectionError):
            return
        if kind == frames.THREADS:
            adaptive.limit(document)
            continue
        # All requests of a batch are predictions, or all are explanations.
        adaptive.before(document[0][1].get("explain") == "True", len(document))
        cpu_started = time.process_time()
        answers, seconds = answering.answer(document, bodies)
        adaptive.after(len(document), seconds, time.process_time() - cpu_started)
        content = {
            "seconds": seconds,
            "answers": [[status, kind, headers, len(body), wrong] for status, kind, headers, body, wrong in answers],
        }
        if updates := measured.take():
            content["metrics"] = updates
        try:
            frames.send(connection, frames.encode(frames.ANSWERS, content, [answer[3] for answer in answers]))
        except ConnectionError:
            return


def _give_back() -> Callable[[], object] | None:
    """Return what gives the system the memory back that a large batch took; None where malloc is not glibc's."""
    with contextlib.suppress(AttributeError, OSError):
        return partial(ctypes.CDLL(None).malloc_trim, 0)
    return None


def quiet_logging() -> None:
    """Log as TorchServe's workers do: bare lines on standard output."""
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO, force=True)
