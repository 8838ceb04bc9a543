"""torchmar.worker.process.supervisor ends the processes that a handler has started when the handler's process ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from tests.support.families import PARENT, all_end, family, runs
from tests.support.paths import ROOT
from tests.support.processes import forked_by, kill_worker
from tests.support.servers import write_config
from torchmar.engines.builtin import Builtin
from torchmar.engines.server_records import ServerRecord
from torchmar.exchange import Request
from torchmar.inference import InferenceClient
from torchmar.worker import Worker

Make = Callable[..., Path]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="daemons are found on Linux only")


@pytest.fixture
def archive(make: Make) -> Path:
    return make(dedent(PARENT), name="parent", config={"minWorkers": 1, "maxWorkers": 2, "responseTimeout": 60})


@pytest.fixture
def server(archive: Path, tmp_path: Path) -> Iterator[Builtin]:
    with Builtin(write_config(tmp_path), archive.parent, tmp_path / "run") as running:
        yield running


def ask(server: Builtin) -> list[psutil.Process]:
    return family(InferenceClient(server.server, timeout=60).request("parent", Request(b"x", "text/plain")).body)


def until_up(server: Builtin) -> None:
    while server.management.describe("parent")[0].ready < 1:
        time.sleep(0.05)


def test_children_and_daemons_end_with_their_worker_however_it_ends_and_are_reaped(
    server: Builtin, archive: Path
) -> None:
    def end_supervisor(worker: psutil.Process) -> None:
        psutil.Process(worker.ppid()).kill()

    def end_parent(worker: psutil.Process) -> None:
        forked_by(worker.pid).kill()

    def end_both(worker: psutil.Process) -> None:
        end_supervisor(worker)
        worker.kill()

    def end_supervisor_of_parent(worker: psutil.Process) -> None:
        psutil.Process(forked_by(worker.pid).ppid()).kill()

    server.load(archive)
    processes = ask(server)
    supervisor = psutil.Process(processes[0].ppid())
    # The child that was to end at once has, and was reaped by who has adopted it.
    while {child.pid for child in supervisor.children()} - {process.pid for process in processes}:
        time.sleep(0.05)
    assert ask(server) == processes
    for end in (lambda worker: worker.kill(), end_supervisor, end_both, end_parent, end_supervisor_of_parent):
        until_up(server)
        processes = ask(server)
        assert all(map(runs, processes))
        end(processes[0])
        assert all_end(processes)
    until_up(server)
    processes = ask(server)
    server.management.scale("parent", min_worker=0)
    assert all_end(processes)
    server.management.scale("parent", min_worker=1)
    processes = ask(server)
    server.management.unregister("parent")
    assert all_end(processes)


@pytest.mark.parametrize(
    "how",
    # Forked processes of a server are not in its group.
    ["stopped", "killed", pytest.param("killed with its group", marks=pytest.mark.unforked)],
)
def test_children_and_daemons_end_with_the_server(server: Builtin, archive: Path, how: str) -> None:
    server.load(archive)
    processes = ask(server)
    running = ServerRecord.find(server.folder)
    assert running
    if how == "stopped":
        running.stop()
    elif how == "killed":
        assert kill_worker(running.pid)
    else:
        os.killpg(running.pid, 9)
    assert all_end(processes)


def test_children_and_daemons_end_with_a_worker_without_a_server(archive: Path) -> None:
    with Worker(archive) as worker:
        (answer,) = worker.predict_batch([Request(b"x", "text/plain")])
        processes = family(answer.body)
        assert processes[0].pid == worker.pid
        assert all(map(runs, processes))
    assert all_end(processes)


def test_children_and_daemons_end_with_a_program_that_has_a_worker(archive: Path) -> None:
    program = f"""
    import sys, time
    from pathlib import Path
    from torchmar.exchange import Request
    from torchmar.worker import Worker
    worker = Worker(Path({str(archive)!r}))
    print(worker.predict_batch([Request(b"x", "text/plain")])[0].body.decode(), flush=True)
    time.sleep(600)
    """
    command = [sys.executable, "-c", dedent(program)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            processes = family(process.stdout.readline().encode())
            assert all(map(runs, processes))
        finally:
            process.kill()
    assert all_end(processes)


# A supervisor that has neither orphans to adopt nor a list of its children.
ALONE = """
import os, subprocess
from torchmar.worker.process import supervisor
supervisor.adopt_orphans = lambda: None
supervisor._proc_is_own = lambda: False
supervisor.supervise(os.pipe()[0])
print(subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL).pid, flush=True)
input()
os._exit(3)
"""


def test_where_no_orphans_are_adopted_the_process_group_is_killed() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", ALONE], cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        child = psutil.Process(int(process.stdout.readline()))
        assert runs(child)
        process.stdin.write("\n")
    assert process.returncode == 3
    assert all_end([child])


def test_a_supervisor_whose_parent_is_in_a_group_of_another_pid_namespace_survives_the_kill_of_its_own() -> None:
    inside = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", '"$@"; echo $?; read _', "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, "true"], input=b"\n", capture_output=True).returncode
    ):
        pytest.skip("pid namespaces are not permitted here")
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*inside, sys.executable, "-c", ALONE], cwd=ROOT, stdin=pipe, stdout=pipe, text=True, bufsize=1
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        children = [child for child in psutil.Process(process.pid).children(recursive=True) if child.name() == "sleep"]
        assert len(children) == 1
        process.stdin.write("\n")
        assert process.stdout.readline() == "3\n"
        assert all_end(children)  # before the namespace ends, which would kill them, too
        process.stdin.write("\n")
