"""Threads for blocking calls, whose end the end of the process does not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any


class DaemonThreads(Executor):
    """Runs calls in daemon threads, one for each call.

    The interpreter joins the threads of `concurrent.futures.ThreadPoolExecutor` when it ends: a connection on which
    nothing arrives would delay the end of a server until its timeout.

    Args:
        limit: the number of calls that run at a time; further ones wait.
        name: of the threads.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._free, self._name = threading.Semaphore(limit), name
        self._unfinished: set[Future[Any]] = set()

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a call, or let it wait for others. See `concurrent.futures.Executor.submit`."""
        future: Future[Any] = Future()
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        arguments = (future, partial(call, *args, **kwargs))
        threading.Thread(target=self._run, args=arguments, name=self._name, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel calls that wait, and wait for those that run. See `concurrent.futures.Executor.shutdown`."""
        unfinished = list(self._unfinished)
        if cancel_futures:
            for future in unfinished:
                future.cancel()
        if wait:
            futures.wait(unfinished)

    def _run(self, future: Future[Any], call: Callable[[], Any]) -> None:
        with self._free:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
