"""Many requests at once: a few threads with a client each, and a bounded number of requests in memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar

from torchmar.errors import TorchmarError


class Closes(Protocol):
    """What a thread asks with."""

    def close(self) -> None:
        """Close the connections."""


Client = TypeVar("Client", bound=Closes)
Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    items: Iterable[Item],
    ask: Callable[[Client, Item], Result],
    clients: Callable[[], Client],
    *,
    jobs: int = 4,
    ordered: bool = True,
) -> Generator[tuple[Item, Result | TorchmarError], None, None]:
    """Yield every item with what ``ask`` returned for it, or the TorchmarError that it raised.

    At most twice as many items as there are threads have been taken from ``items`` and not been
    yielded yet. Who stops early waits for nothing: questions that are under way are given up.

    Args:
        items: what to ask about; taken one by one.
        ask: called in a thread.
        clients: makes what ``ask`` gets; called once for every thread.
        jobs: threads; at least one.
        ordered: in the order of ``items``, or each as soon as it is there.
    """
    jobs = max(1, jobs)
    todo: queue.SimpleQueue[tuple[int, Item] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Item, Result | BaseException]] = queue.SimpleQueue()
    stopped = threading.Event()

    def work(client: Client) -> None:
        while (task := todo.get()) is not None and not stopped.is_set():
            index, item = task
            try:
                done.put((index, item, ask(client, item)))
            except BaseException as error:  # raised where the result is taken
                done.put((index, item, error))
        client.close()

    # Daemon threads do not delay the end of the program: Ctrl-C ends it at once.
    for client in [clients() for _ in range(jobs)]:
        threading.Thread(target=work, args=(client,), daemon=True).start()
    numbered = enumerate(items)
    there: dict[int, tuple[Item, Result | TorchmarError]] = {}
    taken = yielded = 0
    try:
        while True:
            while taken - yielded < 2 * jobs and (task := next(numbered, None)) is not None:
                todo.put(task)
                taken += 1
            if taken == yielded:
                return
            index, item, result = done.get()
            if isinstance(result, BaseException) and not isinstance(result, TorchmarError):
                raise result
            there[index if ordered else yielded] = (item, result)
            while yielded in there:
                yield there.pop(yielded)
                yielded += 1
    finally:
        stopped.set()
        for _ in range(jobs):
            todo.put(None)
