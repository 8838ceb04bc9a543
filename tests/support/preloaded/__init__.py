"""Processes that have loaded what others import, and fork these in the tests: workers, servers, commands, conversions.

The import of torch and of TorchServe takes a worker one to four seconds of CPU time, that of its packages a command
half a second, and the tests start more than a thousand of both. `fork_processes` starts one process that loads torch,
one that loads the packages of the command line, one with Keras for its conversions and one with ONNX and OpenVINO for
exports; each loads them when the first process of its kind is started. All processes of pytest-xdist share them.
Python runs `startup/sitecustomize.py` when it starts; in TorchServe's workers, in ours, in our fork server, in the
built-in server, in the jobs of its console, in the processes of conversions and in `torchmar` that has the process
forked which would run, and only passes signals and the exit status on. Commands whose results tests read are forked
without a Python that is started (`direct`). The code that runs is the same. Its arguments, environment, working folder,
open files, limits, process group and folders of modules are those of the process that was started; where they cannot
be, this process runs the code itself (`server.objection` has the reasons).

Modules of tests with the mark ``unforked`` are about workers and servers as processes; there they are started, as
`unforked` does for what a fixture starts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import pytest

from tests.support.paths import ROOT
from torchmar import openmp
from torchmar.worker.environment import worker_environment

Kind = Literal["workers", "commands", "conversions", "exports"]
VARIABLES = {kind: f"TORCHMAR_TESTS_{kind.upper()}" for kind in get_args(Kind)}  # have the paths of the sockets


@contextlib.contextmanager
def fork_processes(*soon: Kind) -> Iterator[None]:
    """Have processes that are started meanwhile forked by one of their kind that has loaded what they import.

    Only on Linux, and not with the variable ``TORCHMAR_TESTS_UNFORKED``. Where the process that started this one has
    done so already, its processes fork those of this one, too.

    Args:
        soon: kinds that are needed: what they import is loaded at once.
    """
    if sys.platform != "linux" or "TORCHMAR_TESTS_UNFORKED" in os.environ:
        yield
        return
    with contextlib.ExitStack() as stack:
        if not os.environ.keys() >= set(VARIABLES.values()):
            stack.enter_context(_started())
        for kind in soon:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.connect(os.environ[VARIABLES[kind]])
        yield


@contextlib.contextmanager
def unforked() -> Iterator[None]:
    """Have workers and servers that are started meanwhile started as users start them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLES["workers"], raising=False)
        yield


@contextlib.contextmanager
def _started() -> Iterator[None]:
    """Run a process of each kind, of which this process and those that it starts know by their environment."""
    startup = str(Path(__file__).with_name("startup"))
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for kind in get_args(Kind):
            patch.setenv(VARIABLES[kind], stack.enter_context(_preloaded(kind)))
        patch.setenv("PYTHONPATH", os.pathsep.join(dict.fromkeys([startup, *filter(None, folders)])))
        yield


@contextlib.contextmanager
def _preloaded(kind: Kind) -> Iterator[str]:
    """Run a process that forks others; return the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="torchmar-tests-") as home:
        path, log = str(Path(home) / "preloaded"), Path(home) / "log"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, log.open("wb") as output:
            listener.bind(path)
            listener.listen(64)
            # Its standard input is its lifeline.
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("server.py")), kind, str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
                env=_environment(kind, home),
            )
        try:
            yield path
            assert process.poll() is None, f"the process that forks {kind} has ended:\n{log.read_text()}"
        finally:
            process.communicate()  # closes its standard input


def _environment(kind: Kind, home: str) -> dict[str, str]:
    """Return what processes of a kind are started with, as far as what they load reads it."""
    environment = dict(os.environ)
    if kind == "workers":
        environment = worker_environment(environment)
    elif kind in ("conversions", "exports"):
        environment = {**openmp.short_wait(environment), **environment}
    if kind == "conversions":
        environment |= {"KERAS_BACKEND": "torch", "KERAS_HOME": home, "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = str(ROOT)
    elif kind == "exports":
        environment |= {"PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    # numpy would start a thread for every core, as in our fork server.
    return {**environment, "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
