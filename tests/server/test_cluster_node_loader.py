"""torchmar.cluster.node_loader: replicas of a version on one node share what is loaded; here without Ray."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.node_loaders import replica_of
from tests.support.paths import ROOT
from tests.support.pool_harness import OBEDIENT, PoolHarness, ask, options_of
from tests.support.processes import forked_by
from tests.support.waiting import until
from torchmar.cluster.node_loader import LoaderSpec
from torchmar.cluster.processes import loader_words
from torchmar.server.workers.pool import Pool

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets"),
]
SIZE = 64 << 20
LARGE = f"""
import os, numpy

class Handler:
    def initialize(self, context):
        self.weights = numpy.random.default_rng(0).integers(255, size={SIZE}, dtype=numpy.uint8)

    def handle(self, rows, context):
        return [{{"value": [os.getpid(), len(self.weights)]}} for row in rows]
"""
# A replica of its own process: prints the number of its worker's process, and waits.
REPLICA = """
import asyncio, sys
from tests.support.pool_harness import PoolHarness, ask
from tests.support.node_loaders import replica_of
from torchmar.cluster.node_loader import LoaderSpec

async def main():
    replica = replica_of(LoaderSpec.from_json(sys.argv[1]), PoolHarness())
    assert await replica.scale(1, 1), replica.failure
    print((await ask(replica, ["pid"]))[0][0], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def spec_of(folder: Path, key: str, **options: Any) -> LoaderSpec:
    return LoaderSpec(
        key=key,
        node_id="node",
        head="127.0.0.1:1",
        group=key,
        options=options_of("handler.py", folder, **options),
        environment=dict(os.environ),
    )


def loaders(key: str) -> list[psutil.Process]:
    (word,) = loader_words("127.0.0.1:1", key)[1:]
    return [each for each in psutil.process_iter(["cmdline"]) if word in (each.info["cmdline"] or ())]


@pytest.fixture
def key() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    (tmp_path / "handler.py").write_text(LARGE)
    return tmp_path


@pytest.fixture
def observer() -> Iterator[PoolHarness]:
    harness = PoolHarness()
    yield harness
    harness.loop.close()


async def end(*replicas: Pool) -> None:
    for replica in replicas:
        await replica.close()
        replica.loader.release()


@pytest.mark.parametrize("fork", ["allowed", "never"])
def test_replicas_share_what_is_loaded_also_when_the_first_one_is_killed(
    large: Path, key: str, observer: PoolHarness, fork: str
) -> None:
    spec = spec_of(large, key, fork=fork)

    async def scenario(first: subprocess.Popen[str]) -> None:
        assert first.stdout
        other = int(await asyncio.to_thread(first.stdout.readline))
        replica = replica_of(spec, observer)
        assert await replica.scale(1, 1), replica.failure
        ((worker, size),) = await ask(replica, ["pid"])
        assert size == SIZE
        assert len(loaders(key)) == 1
        # Forks of the process that has loaded the model, or of the fork server.
        assert forked_by(worker) == forked_by(other)
        assert psutil.Process(worker).memory_full_info().uss < SIZE / 2
        first.kill()
        await asyncio.to_thread(until, lambda: not psutil.pid_exists(other))
        assert (await ask(replica, ["pid"]))[0][0] == worker
        another = replica_of(spec, observer)
        assert await another.scale(1, 1), another.failure
        assert len(loaders(key)) == 1
        await end(replica, another)

    with subprocess.Popen(
        [sys.executable, "-c", REPLICA, spec.to_json()], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as first:
        try:
            observer.run(scenario(first))
        finally:
            first.kill()
    until(lambda: not loaders(key))


def test_a_loader_or_its_fork_server_that_is_killed_is_started_again_and_the_replicas_stay(
    large: Path, key: str, observer: PoolHarness, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of(large, key, fork="allowed")

    async def scenario() -> None:
        replicas = [replica_of(spec, observer) for _ in range(2)]
        assert all(await asyncio.gather(*(replica.scale(1, 1) for replica in replicas)))
        for kind in ("fork server", "loader"):
            before = [(await ask(replica, ["pid"]))[0][0] for replica in replicas]
            # The model's process has forked the workers, and the fork server the model's process.
            fork_server = forked_by(forked_by(before[0]).pid)
            (killed,) = [fork_server] if kind == "fork server" else loaders(key)
            killed.kill()
            await asyncio.to_thread(until, lambda before=before: not any(map(psutil.pid_exists, before)))
            for replica, pid in zip(replicas, before, strict=True):
                while not replica.ready:
                    await asyncio.sleep(0.05)
                assert (await ask(replica, ["pid"]))[0][0] != pid
        assert len({forked_by(replica.workers()[0].pid) for replica in replicas}) == 1
        await end(*replicas)

    observer.run(scenario())
    assert caplog.text.count("the node's loader of the model has ended") == 2  # each replica reports it once
    until(lambda: not loaders(key))


def test_a_version_that_does_not_load_or_crashes_leaves_another_alone(
    tmp_path: Path, key: str, observer: PoolHarness
) -> None:
    codes = {"good": OBEDIENT, "raises": "raise ValueError('no weights')", "exits": "import os\nos._exit(3)"}
    for name, code in codes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "handler.py").write_text(code)

    async def scenario() -> None:
        good, raises, exits = (replica_of(spec_of(tmp_path / name, f"{key}-{name}"), observer) for name in codes)
        assert await good.scale(1, 1), good.failure
        assert not any(await asyncio.gather(raises.scale(1, 1), exits.scale(1, 1)))
        assert "ValueError: no weights" in raises.failure
        assert "the process ended with exit code 3 while loading" in exits.failure
        assert await ask(good, ["same", "die"]) == ["same", 500]
        while not good.ready:
            await asyncio.sleep(0.05)
        assert await ask(good, ["again"]) == ["again"]
        await end(good, raises, exits)

    observer.run(scenario())
    until(lambda: not any(loaders(f"{key}-{name}") for name in codes))
