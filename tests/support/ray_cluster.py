"""Clusters of Ray on this machine, for tests of the engine and of exported folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import oracles

# Otherwise Ray replaces 127.0.0.1 in an address by another address of this machine.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class RayCluster:
    """A running cluster: its address, the interpreter that has Ray, and the environment of its processes."""

    address: str
    python: Path
    environment: dict[str, str]
    process: subprocess.Popen[str]

    def kill_node(self, number: int) -> None:
        """Kill a node with all its processes."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "killed\n"


@contextlib.contextmanager
def ray_cluster(*cpus: int) -> Iterator[RayCluster]:
    """Run a cluster whose nodes pretend to have these numbers of CPUs, the head's first.

    The test is skipped where Ray cannot be installed.
    """
    python = oracles.python_of("ray", borrows=True)
    folder = tempfile.mkdtemp(prefix="ray-")  # its sockets need a short path
    environment = {**os.environ, "RAY_TMPDIR": folder, "TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", **LOOPBACK}
    script = Path(oracles.__file__).with_name("ray_nodes.py")
    process = subprocess.Popen(
        [python, script, *map(str, cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(errors := tempfile.TemporaryFile("w+")),
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        assert process.stdout
        assert process.stdin
        address = process.stdout.readline().strip()
        errors.seek(0)
        assert address, errors.read()
        yield RayCluster(address, python, environment, process)
    finally:
        process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
