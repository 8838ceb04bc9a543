"""A process that has loaded torch, and forks the worker processes of the tests.

The import of torch and of TorchServe takes a worker one to four seconds of CPU time, and the tests start more than a
thousand workers. `fork_worker_processes` starts one process for each process of pytest. Python runs
`startup/sitecustomize.py` when it starts; in TorchServe's workers, in ours and in our fork server that has the process
forked which would run, and only passes signals and the exit status on. The code that runs is the same. Its arguments,
environment, working folder, open files, limits, process group and folders of modules are those of the process
that was started; where they cannot be, this process runs the code itself (`server.objection` has the reasons).

Modules of tests with the mark ``unforked`` are about these processes themselves; there they are started.
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

import pytest

from torchmar.worker.environment import worker_environment

VARIABLE = "TORCHMAR_TESTS_PRELOADED"  # the path of the socket


@contextlib.contextmanager
def fork_worker_processes() -> Iterator[None]:
    """Have the worker processes that are started meanwhile forked by one that has loaded torch."""
    folder = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="torchmar-tests-") as home, pytest.MonkeyPatch.context() as patch:
        path, log = str(Path(home) / "preloaded"), Path(home) / "log"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, log.open("wb") as output:
            listener.bind(path)
            listener.listen(64)
            # Its standard input is its lifeline; numpy would start a thread for every core, as in our fork server.
            process = subprocess.Popen(
                [sys.executable, str(folder / "server.py"), str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
                env={**worker_environment(os.environ), "OPENBLAS_NUM_THREADS": "1"},
            )
        before = os.environ.get("PYTHONPATH")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "startup"), *([before] if before else [])]))
        patch.setenv(VARIABLE, path)
        try:
            yield
            assert process.poll() is None, f"the process that has loaded torch has ended:\n{log.read_text()}"
        finally:
            process.communicate()  # closes its standard input
