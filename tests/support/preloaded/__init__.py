"""Processes that have loaded common packages, and fork the workers, servers, commands and conversions of the tests.

The import of torch and of TorchServe takes one to four seconds of CPU time in a worker, and that of its packages half a
second in a command; the tests start more than a thousand of both. `fork_processes` starts one process that loads torch,
one with the packages of the command line, one with Keras for its conversions, and one with ONNX and OpenVINO for
exports; each loads its packages when the first process of its kind is started. All processes of pytest-xdist share
them. Python runs `startup/sitecustomize.py` when it starts. In TorchServe's workers, in torchmar's, in its fork server,
in the built-in server, in the jobs of its console, in the processes of conversions and in `torchmar`, this module
requests a fork of the process, and then only passes signals and the exit status on. Commands whose results tests read
are forked without starting a Python first (`direct`). The code that runs is the same. Its arguments, environment,
working folder, open files, limits, process group and folders of modules are those of the started process; if this is
not possible, the started process runs the code itself (`server.objection` has the reasons).

Test modules with the mark ``unforked`` test workers and servers as processes, which are then started; so does
`unforked` for those of a fixture.
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
VARIABLES = {kind: f"TORCHMAR_TESTS_{kind.upper()}" for kind in get_args(Kind)}  # contain the paths of the sockets


@contextlib.contextmanager
def fork_processes(*soon: Kind) -> Iterator[None]:
    """While the context is open, let processes with the necessary packages fork the processes that are started.

    Only on Linux, and not with the variable ``TORCHMAR_TESTS_UNFORKED``. If the parent of this process has
    called this function already, its processes also fork those of this process.

    Args:
        soon: kinds whose packages are loaded at once.
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


def environment_of_started() -> dict[str, str]:
    """Return the variables with which a command is started, and the processes that it starts are its children."""
    return {name: value for name, value in os.environ.items() if name != VARIABLES["commands"]}


@contextlib.contextmanager
def unforked() -> Iterator[None]:
    """While the context is open, start workers and servers as users start them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLES["workers"], raising=False)
        yield


@contextlib.contextmanager
def _started() -> Iterator[None]:
    """Run a process of each kind; this process and its children find them by environment variables."""
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
    """Return the environment of the processes of a kind, limited to variables that the loaded packages read."""
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
    # numpy would start a thread for every core, as in torchmar's fork server. AOTInductor's code around the operations,
    # for which the C++ compiler takes most of its time, is not what is tested; torch reads this when it is loaded.
    return {
        **environment,
        "OPENBLAS_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL": "O0",
    }
