"""torchmar.worker.process.shared_weights: weights that all workers have loaded are in memory once."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest
import torch

from tests.support.pool_harness import PoolHarness, job, options_of
from torchmar.archive import Archive
from torchmar.server.workers.jobs import Reply
from torchmar.server.workers.pool import Pool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no files in memory")

Make = Callable[..., Path]
_SIZE = 10_000_000  # numbers of 4 bytes, together more than what malloc can be configured to take from its heap
_MUCH = 32 << 20  # bytes that a worker has besides: about 14 MiB, and no copy of the weights


@pytest.fixture
def serve(pool_harness: PoolHarness, make: Make, tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    """Return a function that serves a handler with four workers."""
    pools: list[Pool] = []

    def start(code: str, disk: dict[str, bytes] | None = None, workers: int = 4, **options: Any) -> Pool:
        folder = tmp_path / f"model-{len(pools)}"
        with Archive(make(dedent(code), disk=disk, files={name: name for name in disk or {}})) as archive:
            archive.extract(folder)
            handler = archive.manifest.model.handler

        async def scale() -> Pool:
            pool = Pool(pool_harness.fork_server, options_of(handler, folder, **options), pool_harness)
            pools.append(pool)
            assert await pool.scale(workers, workers), pool.failure
            return pool

        return pool_harness.run(scale())

    yield start

    async def end() -> None:
        for pool in pools:
            await pool.close()

    pool_harness.run(end())


def ask(pool_harness: PoolHarness, pool: Pool, bodies: list[Any]) -> list[Any]:
    """Return the answers to requests that come at once."""

    async def all_of_them() -> list[Reply]:
        futures: list[asyncio.Future[Reply]] = [asyncio.get_running_loop().create_future() for _ in bodies]
        for body, future in zip(bodies, futures, strict=True):
            pool.submit(job(body, future.set_result))
        return await asyncio.gather(*futures)

    return [json.loads(reply.body) for reply in pool_harness.run(all_of_them())]


def own_memory(pool: Pool) -> list[int]:
    """Return the memory of each worker that no other process has, in bytes."""
    return [psutil.Process(worker.pid).memory_full_info().uss for worker in pool.workers()]


HANDLER = """
import os, time, zlib
import numpy as np
import torch

def net(count):
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(count))
    return model

class Handler:
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        {load}
        self.sum = zlib.crc32(self.bytes())

    def bytes(self):
        return self.weights if isinstance(self.weights, np.ndarray) else self.weights.detach().numpy()

    def handle(self, rows, context):
        if rows[0]["body"] == "write":
            with torch.no_grad():
                self.weights[1_000_000:3_000_000] += 1
        time.sleep(0.05)  # so that each worker gets some of the requests
        digest = zlib.crc32(self.bytes())
        return [{{"pid": os.getpid(), "loaded": self.sum, "digest": digest}} for _ in rows]
"""

LOADS = {
    "a state dict that is copied": (
        "self.model = net(COUNT)\n"
        "self.model.load_state_dict(torch.load(folder + '/weights'))\n"
        "self.weights = self.model.weight"
    ),
    "a state dict in another type": (
        "self.model = net(COUNT)\n"
        "self.model.load_state_dict(torch.load(folder + '/weights'))\n"
        "self.model.double()\n"
        "self.weights = self.model.weight"
    ),
    "TorchScript": "self.model = torch.jit.load(folder + '/script')\nself.weights = self.model.weight",
    "an array": "self.weights = torch.load(folder + '/weights')['weight'].numpy().copy()",
    "what is computed": "self.weights = torch.arange(COUNT, dtype=torch.float32).sqrt()",
}


def handler(load: str) -> str:
    return HANDLER.format(load=load.replace("COUNT", str(_SIZE)).replace("\n", "\n        "))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.weight = torch.nn.Parameter(torch.rand(_SIZE, generator=generator))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.weight[0]

    net, saved, scripted = Net(), io.BytesIO(), io.BytesIO()
    torch.save(net.state_dict(), saved)
    torch.jit.save(torch.jit.trace(net, torch.zeros(1)), scripted)  # type: ignore[no-untyped-call]
    return {"weights": saved.getvalue(), "script": scripted.getvalue()}


@pytest.mark.parametrize("kind", LOADS)
def test_equal_weights_of_workers_are_in_memory_once(
    pool_harness: PoolHarness, serve: Callable[..., Pool], files: dict[str, bytes], kind: str
) -> None:
    needed = {name: files[name] for name in files if f"/{name}'" in LOADS[kind]}
    pool = serve(handler(LOADS[kind]), needed)
    assert max(own_memory(pool)) < _MUCH
    answers = ask(pool_harness, pool, ["read"] * 8)
    assert len({answer["pid"] for answer in answers}) == 4
    # The first digest was made before the weights were put elsewhere.
    assert {answer["digest"] for answer in answers} == {answers[0]["loaded"]}
    assert max(own_memory(pool)) < _MUCH


def test_writes_of_one_worker_are_not_visible_to_others(
    pool_harness: PoolHarness, serve: Callable[..., Pool], files: dict[str, bytes]
) -> None:
    pool = serve(handler(LOADS["TorchScript"]), {"script": files["script"]})
    (wrote,) = ask(pool_harness, pool, ["write"])
    assert wrote["digest"] != wrote["loaded"]
    answers = ask(pool_harness, pool, ["read"] * 8)
    digests = {answer["pid"]: answer["digest"] for answer in answers}
    assert len(digests) == 4
    assert all(digests[answer["pid"]] == answer["digest"] for answer in answers)
    assert digests.pop(wrote["pid"]) == wrote["digest"]
    assert set(digests.values()) == {wrote["loaded"]}
    assert sorted(own_memory(pool))[2] < _MUCH


def test_a_later_worker_shares_the_weights_of_the_first(
    pool_harness: PoolHarness, serve: Callable[..., Pool], files: dict[str, bytes]
) -> None:
    pool = serve(handler(LOADS["TorchScript"]), {"script": files["script"]}, workers=1)
    assert pool_harness.run(pool.scale(3, 3))
    assert max(own_memory(pool)) < _MUCH
    before = {worker.pid for worker in pool.workers()}
    psutil.Process(min(before)).kill()

    async def again() -> None:
        while pool.ready < 3 or {worker.pid for worker in pool.workers()} == before:
            await asyncio.sleep(0.01)

    pool_harness.run(again())
    assert max(own_memory(pool)) < _MUCH
    assert len({answer["digest"] for answer in ask(pool_harness, pool, ["read"] * 12)}) == 1


def test_weights_that_differ_stay_those_of_each_worker(pool_harness: PoolHarness, serve: Callable[..., Pool]) -> None:
    answers = ask(pool_harness, serve(handler("self.weights = torch.rand(5_000_000)")), ["read"] * 8)
    assert len({answer["pid"] for answer in answers}) == 4
    assert all(answer["digest"] == answer["loaded"] for answer in answers)
    assert len({answer["digest"] for answer in answers}) == 4


WRITER = """
import _thread
import time

import torch

class Handler:
    def initialize(self, context):
        self.weights = torch.zeros(5_000_000)
        _thread.start_new_thread(self.write, ())

    def write(self):
        while True:
            self.weights += 1
            time.sleep(0.01)

    def handle(self, rows, context):
        maps = open("/proc/self/maps").read()
        return [{"shares": "model-weights" in maps} for _ in rows]
"""


def test_weights_that_a_native_thread_may_write_to_are_not_shared(
    pool_harness: PoolHarness, serve: Callable[..., Pool]
) -> None:
    answers = ask(pool_harness, serve(WRITER, workers=2), ["read"] * 2)
    assert {answer["shares"] for answer in answers} == {False}


def test_workers_with_a_limit_of_memory_answer_the_same(
    pool_harness: PoolHarness, serve: Callable[..., Pool], files: dict[str, bytes]
) -> None:
    pool = serve(handler(LOADS["TorchScript"]), {"script": files["script"]}, 2, memory_limit=1 << 30)
    answers = ask(pool_harness, pool, ["read"] * 8)
    assert {answer["digest"] for answer in answers} == {answers[0]["loaded"]}
