"""A registry in the process of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from tests.support.servers import write_config
from torchmar.server.api_error import ApiError
from torchmar.server.config import reader
from torchmar.server.config.settings import Settings
from torchmar.server.models.archive_cache import ArchiveCache
from torchmar.server.models.registration import Registration
from torchmar.server.models.registry import Registry
from torchmar.server.telemetry.events import Events
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.telemetry.observer import ServerObserver
from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.jobs import Job, Part, Reply
from torchmar.server.workers.pools import LocalPools

T = TypeVar("T")


class RegistryHarness:
    """A registry with a fork server, in a loop that runs during `run`."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = folder
        self.store = folder / "store"
        self.store.mkdir()
        self.settings = read(folder)

    def __enter__(self) -> RegistryHarness:
        self.run(self._start())
        return self

    def __exit__(self, *error: object) -> None:
        self.run(self.registry.close(5))
        self.run(self.sources.close())
        self.fork_server.close()
        self.loop.close()

    async def _start(self) -> None:
        self.fork_server = ForkServer()
        await self.fork_server.start()
        self.sources = ArchiveCache(self.settings, self.folder / "archives")
        self.registry = Registry(
            self.sources, LocalPools(self.fork_server), self.settings, ServerObserver(Metrics(), Events())
        )

    def run(self, awaitable: Awaitable[T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(awaitable, 300)  # against hangs; on a busy machine, workers load for a minute

        return self.loop.run_until_complete(bounded())

    def error_of(self, awaitable: Awaitable[Any]) -> tuple[int, str]:
        with pytest.raises(ApiError) as caught:
            self.run(awaitable)
        return caught.value.status, caught.value.message

    def register(self, url: str, workers: int = 0, **more: Any) -> Any:
        return self.run(self.registry.register(Registration(url, initial_workers=workers, **more)))

    def ask(self, name: str) -> asyncio.Future[Reply]:
        reply: asyncio.Future[Reply] = self.loop.create_future()
        self.registry.find(name).pool.submit(Job("id", {}, [Part("body", "text/plain", b"x")], reply.set_result))
        return reply

    def workers(self) -> list[psutil.Process]:
        """The processes that the fork server has started and that still run."""
        return psutil.Process(self.fork_server.pid).children(recursive=True)

    async def until(self, true: Any) -> None:
        while not true():
            await asyncio.sleep(0.01)


def read(folder: Path, **keys: str) -> Settings:
    gpus = int(keys.pop("number_of_gpu", 0))  # regardless of this machine's GPUs
    # Some of these tests need archives that the checks would refuse.
    config = write_config(folder, torchmar_check_archives="false", **keys)
    settings, _ = reader.read(config, {}, model_store=str(folder / "store"))
    return replace(settings, number_of_gpu=gpus)
