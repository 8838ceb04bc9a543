"""tests.support.preloaded: a forked process has all that a started one has, and ends as it does."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.command import torchmar
from tests.support.families import all_end
from tests.support.preloaded import VARIABLES, Kind
from torchmar.worker.environment import worker_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")

# By these names, a script is a worker of TorchServe, or a command.
SCRIPTS: dict[Kind, str] = {"workers": "ts/model_service_worker.py", "commands": "bin/torchmar"}
DESCRIBE = """
import json, os, resource, signal, sys

with os.scandir("/proc/self/fd") as entries:
    files = sorted(int(entry.name) for entry in entries)
described = {
    "arguments": sys.argv,
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "path": sys.path,
    "files": [(number, os.fstat(number).st_ino) for number in files if os.path.exists(f"/proc/self/fd/{number}")],
    "group": os.getpgrp(),
    "limits": [resource.getrlimit(number) for number in range(16)],
    "cores": sorted(os.sched_getaffinity(0)),
    "name": __name__,
    "file": __file__,
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
    "input": sys.stdin.read(),
    "streams": [(file.encoding, file.errors, file.line_buffering) for file in (sys.stdin, sys.stdout, sys.stderr)],
}
print(json.dumps([os.getpid(), [name for name in ("torch", "typer") if name in sys.modules], described]))
"""
DRAW = """
import random, uuid
import numpy, torch

print(random.random(), numpy.random.random(), torch.rand(1).item(), uuid.uuid4())
"""
OBEY = """
import os, signal, sys, time

def leave(number, frame):
    print("left", flush=True)
    sys.exit(4)

signal.signal(signal.SIGTERM, leave)
print(os.getpid(), flush=True)
command = sys.argv[1]
if command == "wait":
    time.sleep(120)
elif command == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif command == "raise":
    raise ValueError("as commanded")
sys.exit(int(command))
"""


def script(folder: Path, code: str, kind: Kind = "workers") -> Path:
    path = folder / SCRIPTS[kind]
    path.parent.mkdir(parents=True)
    path.write_text(code)
    return path


def started(
    path: Path, *arguments: str, environment: Mapping[str, str] = os.environ, **options: Any
) -> subprocess.Popen[str]:
    command = [sys.executable, str(path), *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = worker_environment(environment) if path.name == "model_service_worker.py" else environment
    return subprocess.Popen(command, env=environment, text=True, **pipes, **options)


@pytest.mark.parametrize(("kind", "loaded"), [("workers", "torch"), ("commands", "typer")])
def test_a_forked_process_has_what_a_started_one_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, loaded: str
) -> None:
    path = script(tmp_path, DESCRIBE, kind)
    (tmp_path / "file").write_text("content")
    described = []
    for forked in (True, False):
        if not forked:
            monkeypatch.setenv(VARIABLES[kind], str(tmp_path / "nothing listens here"))
        with (tmp_path / "file").open() as file:
            os.dup2(file.fileno(), 37)
            try:
                process = started(path, "--an", "argument", cwd=tmp_path, pass_fds=[file.fileno(), 37])
            finally:
                os.close(37)
            output, errors = process.communicate("input")
        assert (process.returncode, errors) == (0, "")
        pid, modules, description = json.loads(output)
        assert (pid != process.pid, modules) == (forked, [loaded] if forked else [])
        assert description["environment"].pop(VARIABLES[kind]) == os.environ[VARIABLES[kind]]
        # Pipes are others in each process.
        assert {0, 1, 2, 37} <= dict(description["files"]).keys()
        description["files"] = [file for file in description["files"] if file[0] > 2]
        described.append(description)
    assert described[0] == described[1]
    assert described[0]["arguments"] == [str(path), "--an", "argument"]
    assert described[0]["input"] == "input"


def test_a_command_is_the_same_in_a_terminal_and_with_other_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = []
    monkeypatch.setenv("TERM", "xterm-256color")
    for variable in ("", VARIABLES["commands"]):
        with pytest.MonkeyPatch.context() as patch:
            if variable:
                patch.delenv(variable)
            help_text = torchmar("inspect", "--help", cwd=tmp_path).stdout
            error = torchmar("inspect", "none.mar", cwd=tmp_path, code=1).stderr
            command = shlex.join([sys.executable, "-m", "torchmar", "inspect", "--help"])
            ran = subprocess.run(
                ["script", "-qec", command, "/dev/null"], stdin=subprocess.DEVNULL, capture_output=True
            )
            patch.setenv("FORCE_COLOR", "1")
            printed.append((help_text, error, ran.stdout, torchmar("inspect", "none.mar", cwd=tmp_path, code=1).stderr))
    assert printed[0] == printed[1]
    assert b"\x1b[" in printed[0][2]
    assert "\x1b[" in printed[0][3]


def test_random_numbers_of_forked_processes_differ(tmp_path: Path) -> None:
    path = script(tmp_path, DRAW)
    drawn = [started(path).communicate()[0].split() for _ in range(3)]
    assert [len(set(column)) for column in zip(*drawn, strict=True)] == [3] * 4


@pytest.mark.parametrize(("command", "code"), [("0", 0), ("7", 7), ("raise", 1), ("kill", -signal.SIGKILL)])
def test_a_process_ends_as_the_forked_one_does(tmp_path: Path, command: str, code: int) -> None:
    process = started(script(tmp_path, OBEY), command)
    output, errors = process.communicate()
    assert int(output) != process.pid
    assert process.returncode == code
    assert errors.endswith("ValueError: as commanded\n" if command == "raise" else "")


def test_a_signal_reaches_the_forked_process(tmp_path: Path) -> None:
    with started(script(tmp_path, OBEY), "wait") as process:
        assert process.stdout
        assert int(process.stdout.readline()) != process.pid
        process.terminate()
        assert process.stdout.readline() == "left\n"
        assert process.wait() == 4


def test_a_forked_process_is_killed_with_the_one_that_was_started(tmp_path: Path) -> None:
    with started(script(tmp_path, OBEY), "wait") as process:
        assert process.stdout
        forked = psutil.Process(int(process.stdout.readline()))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert all_end([forked])


def test_a_client_that_is_killed_at_any_time_disturbs_no_other(tmp_path: Path) -> None:
    path = script(tmp_path, OBEY)
    for count in range(12):
        with started(path, "wait") as process:
            time.sleep(count * 0.005)
            process.kill()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as hasty:
        hasty.connect(os.environ[VARIABLES["workers"]])
        hasty.send(b'{"arguments": ["')
    process = started(path, "0")
    output, _ = process.communicate()
    assert int(output) != process.pid


def test_variables_that_a_package_sets_in_the_process_of_a_test_are_given_to_forked_processes(tmp_path: Path) -> None:
    set_by_it = "import os; before = {*os.environ}; import sklearn; print(*({*os.environ} - before))"
    names = subprocess.run([sys.executable, "-c", set_by_it], capture_output=True, text=True, check=True).stdout.split()
    path, variables = script(tmp_path, DESCRIBE), dict.fromkeys(names, "TRUE")
    process = started(path, environment={**os.environ, **variables})
    pid, _, description = json.loads(process.communicate("")[0])
    assert pid != process.pid
    assert description["environment"].items() >= variables.items()


@pytest.mark.parametrize("difference", ["a module", "a variable", "a limit"])
def test_a_process_for_which_loaded_code_may_be_wrong_is_not_forked(tmp_path: Path, difference: str) -> None:
    environment = worker_environment(os.environ)
    command = [sys.executable, str(script(tmp_path / "code", OBEY)), "0"]
    if difference == "a module":
        (tmp_path / "numpy.py").write_text("")
        environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    elif difference == "a variable":
        environment["OMP_NUM_THREADS"] = "7"
    else:
        command = ["prlimit", "--nofile=512", *command]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate()
    assert int(output) == process.pid
    assert process.returncode == 0
