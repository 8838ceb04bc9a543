"""Threads for blocking calls that do not delay the end of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any


class DaemonThreads(Executor):
    """An executor that runs each call in a daemon thread.

    The interpreter waits at its end for the threads of `concurrent.futures.ThreadPoolExecutor`: a silent connection
    would delay the end of a server until its timeout.

    Args:
        limit: largest number of concurrent calls; further ones wait.
        name: name of the threads.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._free, self._name = threading.Semaphore(limit), name
        self._unfinished: set[Future[Any]] = set()

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a call, or queue it. See `concurrent.futures.Executor.submit`."""
        future: Future[Any] = Future()
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        arguments = (future, partial(call, *args, **kwargs))
        threading.Thread(target=self._run, args=arguments, name=self._name, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel queued calls, and wait for running ones. See `concurrent.futures.Executor.shutdown`."""
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
