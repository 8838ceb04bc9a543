"""The loop of a worker: a batch in, its answers out, until the server goes."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from . import frames
from .answering import Answering, Parts
from .measuring import Measured


def serve(
    service: Any,
    connection: socket.socket,
    measured: Measured,
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
    used = Threads(threads)
    answering = Answering(service, Parts(part), isolate=isolate)
    while True:
        try:
            kind, document, bodies = receiver.receive()
        except (frames.Gone, ConnectionError):
            return
        if kind == frames.THREADS:
            used.limit(document)
            continue
        answers, seconds = answering.answer(document, bodies)
        used.worked(seconds)
        said = {
            "seconds": seconds,
            "answers": [[status, kind, headers, len(body), wrong] for status, kind, headers, body, wrong in answers],
        }
        if updates := measured.take():
            said["metrics"] = updates
        try:
            frames.send(connection, frames.encode(frames.ANSWERS, said, [answer[3] for answer in answers]))
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


class Threads:
    """How many threads torch uses: all that it may for work that takes long, one for work that does not.

    Threads that share a millisecond's work wait for each other longer than they work, and those that wait
    keep a core from the server, and from other workers.

    Args:
        wanted: by the handler; None: it has not said.
    """

    LONG, SHORT = 0.005, 0.001  # seconds of a batch
    PATIENCE = 20  # short batches in a row

    def __init__(self, wanted: int | None) -> None:
        self._wanted, self._most, self._now, self._short = wanted, 0, 0, 0

    def limit(self, most: int) -> None:
        """Use no more threads than ``most`` from now on."""
        self._most = max(1, min(most, self._wanted or most))
        self._use(min(self._now or 1, self._most))

    def worked(self, seconds: float) -> None:
        """Take note of how long a batch took."""
        if self._most <= 1:
            return
        if seconds > self.LONG:
            self._short = 0
            if self._now == 1:
                self._use(self._most)
        elif self._now > 1:
            self._short = self._short + 1 if seconds < self.SHORT else 0
            if self._short >= self.PATIENCE:
                self._use(1)

    def _use(self, count: int) -> None:
        if count != self._now:
            import torch

            self._now, self._short = count, 0
            torch.set_num_threads(count)
