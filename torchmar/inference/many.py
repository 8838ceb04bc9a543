"""Many concurrent requests: a few threads, each with a client, and a bounded number of requests in memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar

from torchmar.errors import TorchmarError


class Closable(Protocol):
    """A client of one thread."""

    def close(self) -> None:
        """Close the connections."""


Client = TypeVar("Client", bound=Closable)
Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    items: Iterable[Item],
    request: Callable[[Client, Item], Result],
    clients: Callable[[], Client],
    *,
    jobs: int = 4,
    ordered: bool = True,
) -> Generator[tuple[Item, Result | TorchmarError], None, None]:
    """Yield every item with the result of ``request``, or with the TorchmarError that it raised.

    At most twice as many items as threads are read from ``items`` ahead of the yielded ones. If the caller stops early,
    it does not wait for running requests.

    Args:
        items: items for the requests; they are read one by one.
        request: function that is called in a thread.
        clients: makes a client for ``request``; called once for every thread.
        jobs: number of threads; at least one.
        ordered: whether to yield in the order of ``items``; otherwise in the order of the results.
    """
    jobs = max(1, jobs)
    todo: queue.SimpleQueue[tuple[int, Item] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Item, Result | BaseException]] = queue.SimpleQueue()
    stopped = threading.Event()

    def work(client: Client) -> None:
        while (task := todo.get()) is not None and not stopped.is_set():
            index, item = task
            try:
                done.put((index, item, request(client, item)))
            except BaseException as error:  # an exception of the caller's generator
                done.put((index, item, error))
        client.close()

    # Daemon threads do not delay the end of the program, for example after Ctrl-C.
    for client in [clients() for _ in range(jobs)]:
        threading.Thread(target=work, args=(client,), daemon=True).start()
    numbered = enumerate(items)
    results: dict[int, tuple[Item, Result | TorchmarError]] = {}
    submitted = yielded = 0
    try:
        while True:
            while submitted - yielded < 2 * jobs and (task := next(numbered, None)) is not None:
                todo.put(task)
                submitted += 1
            if submitted == yielded:
                return
            index, item, result = done.get()
            if isinstance(result, BaseException) and not isinstance(result, TorchmarError):
                raise result
            results[index if ordered else yielded] = (item, result)
            while yielded in results:
                yield results.pop(yielded)
                yielded += 1
    finally:
        stopped.set()
        for _ in range(jobs):
            todo.put(None)
