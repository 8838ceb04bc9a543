"""Clusters of Ray on this machine, for tests of the engine and of exported folders."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import oracles
from tests.support.packing import pack_handler
from tests.support.servers import write_config
from torchmar.engines.ray import Ray

# Otherwise Ray replaces 127.0.0.1 in an address by another address of this machine.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def sleeping(seconds: float) -> str:
    """Return a handler that answers after some time, with the process id of its worker."""
    return f"""
import os, time

def handle(rows, context):
    if rows is None:
        return None
    time.sleep({seconds})
    return [str(os.getpid()) for row in rows]
"""


PIDS = sleeping(0.02)


def pack(store: Path, name: str, version: str, code: str, **config: object) -> str:
    """Pack a handler of one file into a store, with keys of its configuration; return the archive's name."""
    keys = {"minWorkers": 1, "maxWorkers": 1, **config}
    return pack_handler(store, code, name=name, version=version, config=keys).name


@dataclass(frozen=True)
class RayCluster:
    """A running cluster: its address, the interpreter that has Ray, and the environment of its processes."""

    address: str
    python: Path
    environment: dict[str, str]
    process: subprocess.Popen[str]

    def kill_node(self, number: int) -> None:
        """Kill a node with all its processes."""
        self._command(str(number))

    def lose_head(self) -> None:
        """Kill the process with the state of the cluster."""
        self._command("lost")

    def restart_head(self) -> None:
        """Kill the process with the state of the cluster, and start it again; its state is in Redis."""
        self._command("head")

    def _command(self, line: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@contextlib.contextmanager
def ray_cluster(*nodes: int | Mapping[str, Any], redis: str = "") -> Iterator[RayCluster]:
    """Run a cluster whose nodes declare these numbers of CPUs, or resources in the form of ``ray.init``.

    The first are those of the head. ``redis`` is the address of a Redis that keeps the state of the head,
    ``HOST:PORT``.

    The test is skipped if Ray cannot be installed.
    """
    python = oracles.python_of("ray", borrows=True)
    folder = tempfile.mkdtemp(prefix="ray-")  # its sockets need a short path
    environment = {**os.environ, "RAY_TMPDIR": folder, "TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", **LOOPBACK}
    if redis:
        environment["RAY_REDIS_ADDRESS"] = redis
    script = Path(oracles.__file__).with_name("ray_nodes.py")
    process = subprocess.Popen(
        [python, script, *(json.dumps({"num_cpus": node} if isinstance(node, int) else node) for node in nodes)],
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


def can_hide_folders() -> bool:
    """Return whether nodes can have the resource ``"hidden": FOLDER``, a folder that is empty for them."""
    return os.geteuid() == 0 and not subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode


def start_front(
    cluster: RayCluster, folder: Path, store: Path, overrides: Mapping[str, str] | None = None, **keys: str
) -> Ray:
    """Return a front of a cluster, as a context manager, with its run folder and configuration in ``folder``."""
    folder.mkdir(exist_ok=True)
    config = write_config(folder, torchmar_ray_address=cluster.address, **keys)
    return Ray(config, store, folder / "run", python=str(cluster.python), overrides=overrides)
