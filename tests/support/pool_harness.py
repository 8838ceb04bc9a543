"""A pool of workers in the process of the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.jobs import Job, Part, Reply
from torchmar.server.workers.pool import Pool
from torchmar.server.workers.pool_options import PoolOptions

Make = Callable[..., Path]


T = TypeVar("T")


# Does the action in a request, and returns the size of the batch.
OBEDIENT = """
import os, time

def handle(rows, context):
    if rows is None:
        return None
    answers = []
    for row in rows:
        what = row["body"]
        if what == "die":
            os._exit(3)
        if what == "raise":
            raise ValueError("on request")
        if isinstance(what, float):
            time.sleep(what)
        answers.append({"value": what, "size": len(rows), "pid": os.getpid()})
    return answers
"""


class PoolHarness:
    """A separate event loop with a fork server, and pools that are closed at the end."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.fork_server: ForkServer
        self.batches: list[int] = []
        self.measured: list[Any] = []
        self.deaths: list[str] = []

    def __enter__(self) -> PoolHarness:
        async def start() -> None:
            self.fork_server = ForkServer()
            await self.fork_server.start()

        self.run(start())
        return self

    def __exit__(self, *error: object) -> None:
        self.fork_server.close()
        self.loop.close()

    def run(self, awaitable: Awaitable[T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(awaitable, 300)  # against hangs; on a busy machine, workers load for a minute

        return self.loop.run_until_complete(bounded())

    def on_batch(self, name: str, version: str, size: int, queue_seconds: Sequence[float], seconds: float) -> None:
        assert len(queue_seconds) == size
        self.batches.append(size)

    def on_load(self, name: str, version: str, worker: str, seconds: float) -> None:
        assert seconds > 0

    def on_load_failed(self, name: str, version: str, worker: str, failure: str) -> None:
        assert failure

    def on_death(self, name: str, version: str, worker: str) -> None:
        self.deaths.append(worker)

    def on_unregister(self, name: str, version: str) -> None:
        raise AssertionError("a pool does not know whether its version stays registered")

    def on_metrics(self, name: str, version: str, updates: Sequence[Any]) -> None:
        self.measured += updates


def options_of(handler: str, folder: Path, **options: Any) -> PoolOptions:
    """Return the options of a pool for an extracted archive."""
    return PoolOptions(name="m", version="1.0", handler=handler, folder=str(folder), **options)


def job(value: Any, on_reply: Callable[[Reply], None], headers: dict[str, str] | None = None, **more: Any) -> Job:
    return Job("id", headers or {}, [Part("body", "application/json", json.dumps(value).encode())], on_reply, **more)


async def ask(pool: Pool, whats: Sequence[Any], headers: dict[str, str] | None = None) -> list[Any]:
    """Return the status of an error, or the value, for each of several simultaneous requests."""
    loop = asyncio.get_running_loop()
    futures = []
    for value in whats:
        future: asyncio.Future[Reply] = loop.create_future()
        pool.submit(job(value, future.set_result, headers))
        futures.append(future)
    replies = await asyncio.gather(*futures)
    return [json.loads(reply.body)["value"] if reply.status == 200 else reply.status for reply in replies]


async def until(true: Callable[[], Any]) -> None:
    while not true():
        await asyncio.sleep(0.01)
