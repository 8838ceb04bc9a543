"""torchmar.process_handle never signals a process that has got the pid of another."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.paths import ROOT
from tests.support.servers import write_config
from torchmar.process_handle import ProcessHandle, identify

if TYPE_CHECKING:
    from tests.support.pool_harness import PoolHarness
    from torchmar.server.workers.pool import Pool

pytestmark = pytest.mark.unforked

_LAST = Path("/proc/sys/kernel/ns_last_pid")


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"], start_new_session=True)


def test_a_handle_signals_its_process_and_detects_its_end() -> None:
    process = sleeper()
    with ProcessHandle(process.pid) as handle:
        assert handle.runs
        assert handle.identity == identify(process.pid) != identify(os.getpid())
        assert handle.signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
        assert not handle.runs
        assert not handle.signal(signal.SIGTERM)
    assert identify(process.pid) == ""
    with pytest.raises(ProcessLookupError):
        ProcessHandle(process.pid)


def test_without_pidfds_the_start_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    process = sleeper()
    with ProcessHandle(process.pid) as handle:
        assert handle.runs
        handle.identity = "of another one"
        assert not handle.runs
        assert not handle.signal(signal.SIGKILL)
    with ProcessHandle(process.pid) as handle:
        assert handle.signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL


def test_a_handle_reads_the_environment_of_its_process() -> None:
    process = subprocess.Popen(["sleep", "600"], env={"A": "b"})
    with ProcessHandle(process.pid) as handle:
        while handle.environment("A") != "b":  # until it is no copy of this one any more
            time.sleep(0.01)
        assert handle.environment("B") is None
        process.kill()
        process.wait()
        assert handle.environment("A") is None


# In a pid namespace of its own, where the system lets the next number be chosen.


def with_number(pid: int) -> subprocess.Popen[bytes]:
    """Start a process that gets a number which was another's, and leads a group of that number."""
    while True:
        _LAST.write_text(str(pid - 1))
        process = sleeper()
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
        time.sleep(0.05)


def processes_of_a_pool_have_died(folder: Path) -> None:
    from tests.support.pool_harness import PoolHarness
    from torchmar.server.telemetry import logs

    logs.open_in(folder / "logs")
    with PoolHarness() as harness:  # which loads torch
        a_worker_has_died(harness, folder)
        a_parent_has_died(harness, folder)


def pool_of(harness: PoolHarness, folder: Path) -> Pool:
    from tests.support.pool_harness import options_of
    from torchmar.server.workers.pool import Pool

    async def make() -> Pool:
        return Pool(harness.fork_server, options_of("handler.py", folder), harness)

    return harness.run(make())


def a_worker_has_died(harness: PoolHarness, folder: Path) -> None:
    from tests.support.pool_harness import ask, until

    flag = folder / "loaded"
    code = f"""
    import os, pathlib
    if pathlib.Path({str(flag)!r}).exists(): raise ValueError("once only")
    pathlib.Path({str(flag)!r}).touch()
    def handle(rows, context):
        if rows is not None: os._exit(3)
    """
    (folder / "handler.py").write_text(dedent(code))
    pool = pool_of(harness, folder)
    assert harness.run(pool.scale(1, 1)), pool.failure
    (worker,) = pool.workers()
    assert harness.run(ask(pool, ["x"])) == [500]
    harness.run(until(lambda: not psutil.pid_exists(worker.pid)))
    innocent = with_number(worker.pid)
    harness.run(until(lambda: "once only" in pool.failure))
    harness.run(pool.close())
    harness.run(until(lambda: not psutil.Process(harness.fork_server.pid).children()))
    assert innocent.poll() is None


def a_parent_has_died(harness: PoolHarness, folder: Path) -> None:
    from tests.support.pool_harness import OBEDIENT, ask, until

    (folder / "handler.py").write_text(OBEDIENT)
    pool = pool_of(harness, folder)
    assert harness.run(pool.scale(2, 2)), pool.failure
    numbers = [process.pid for process in (*pool.workers(), harness.fork_server) if process.pid]
    assert len(numbers) == 3
    os.kill(numbers[-1], signal.SIGKILL)
    harness.run(until(lambda: not any(map(psutil.pid_exists, numbers))))
    innocents = [with_number(number) for number in numbers]
    harness.run(until(lambda: pool.ready == 2))
    assert harness.run(ask(pool, [1, 2])) == [1, 2]
    harness.run(pool.close())
    assert [innocent.poll() for innocent in innocents] == [None] * 3


def a_server_was_killed(folder: Path) -> None:
    from torchmar.engines.builtin import Builtin
    from torchmar.engines.server_records import ServerRecord

    (folder / "store").mkdir()
    with Builtin(write_config(folder), folder / "store", folder / "run") as server:
        running = ServerRecord.find(server.folder)
        assert running
        os.kill(running.pid, signal.SIGKILL)
        server._process.wait()
        innocent = with_number(running.pid)
    assert innocent.poll() is None
    subprocess.run([sys.executable, "-m", "torchmar", "stop", "--run-folder", folder / "run"], check=True)
    assert innocent.poll() is None


@pytest.mark.parametrize("case", [processes_of_a_pool_have_died, a_server_was_killed])
def test_a_process_with_the_reused_pid_of_another_is_not_killed(case: object, tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", '"$@"; exit $?', "bash"]
    if subprocess.run([*inside, "sh", "-c", f"echo 100 > {_LAST}"], capture_output=True).returncode:
        pytest.skip("pid namespaces with numbers of our choice are not permitted here")
    name = case.__name__  # type: ignore[attr-defined]
    program = (
        f"import pathlib; from tests.process.test_process_handle import {name}; {name}(pathlib.Path({str(tmp_path)!r}))"
    )
    ran = subprocess.run(
        [*inside, sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
