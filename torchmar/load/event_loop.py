"""Waiting for sockets and for times, with a resolution of microseconds.

`asyncio` and the selectors of the standard library wait in whole milliseconds, which is longer than many answers take:
requests would be late by more than the measured times.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
Callback = Callable[[int], None]
_PR_SET_TIMERSLACK, _PR_GET_TIMERSLACK = 29, 30  # linux/prctl.h

clock = time.perf_counter


class EventLoop:
    """Sockets and their callbacks; a context manager.

    Attributes:
        now: time at which the sockets of the current callbacks were ready, which is closer to the arrival of their
            bytes than the time of the callback.
    """

    def __init__(self) -> None:
        # Created before any connection, because select only accepts the first 1,024 descriptors.
        self._selector = selectors.DefaultSelector()
        self._before: list[Callable[[], None]] = []
        self.now = clock()

    def __enter__(self) -> EventLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()

    def watch(self, watched: socket.socket, events: int, callback: Callback) -> None:
        """Call ``callback`` with the events for which a socket is ready, until `forget` is called."""
        try:
            self._selector.modify(watched, events, callback)
        except KeyError:
            self._selector.register(watched, events, callback)

    def forget(self, watched: socket.socket) -> None:
        """Stop watching a socket; call this before the socket is closed."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(watched)

    def before_wait(self, callback: Callable[[], None]) -> None:
        """Call a function once, before the next wait."""
        self._before.append(callback)

    def poll(self, until: float) -> None:
        """Wait until a socket is ready or until the time ``until``, and call the callbacks of all ready sockets."""
        if self._before:
            callbacks, self._before = self._before, []
            for callback in callbacks:
                callback()
        seconds = until - clock()
        if seconds > 0:
            select.select([self._selector], (), (), seconds)
        ready = self._selector.select(0)
        self.now = clock()
        for key, events in ready:
            key.data(events)


@contextlib.contextmanager
def precise_timers() -> Iterator[None]:
    """Let the system end waits of this thread within a microsecond; Linux otherwise adds up to 50."""
    if sys.platform != "linux":
        yield
        return
    prctl = ctypes.CDLL(None).prctl
    before = prctl(_PR_GET_TIMERSLACK, 0, 0, 0, 0)
    prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_TIMERSLACK, max(before, 1), 0, 0, 0)
