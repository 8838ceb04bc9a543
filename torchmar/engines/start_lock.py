"""One start at a time per run folder; signals are deferred between the start of a process and its record."""

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
    """Keep other starts out of a run folder; the lock ends with this process at the latest."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Put off Ctrl-C and the like: a process that was started a moment ago would be left to itself."""
    if threading.current_thread() is not threading.main_thread():  # which signals do not reach
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    heard = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in heard:
        # A handler, not a mask: the process would inherit a mask.
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
        if came:
            signal.raise_signal(came[0])
