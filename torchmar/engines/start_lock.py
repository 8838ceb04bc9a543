"""The lock that allows one start at a time per run folder, and the deferral of signals until a process has a record."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, so that one server is started at a time; this process releases it when it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer SIGINT, SIGTERM and SIGHUP, which could otherwise leave a new process without a record."""
    if threading.current_thread() is not threading.main_thread():  # because only the main thread handles signals
        yield
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    handled = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in handled:
        # Handlers rather than a signal mask, because the new process would inherit a mask.
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
        if received:
            signal.raise_signal(received[0])
