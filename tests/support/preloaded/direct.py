"""Forks of commands without a started Python, which would only pass signals and the exit status on."""

from __future__ import annotations

import array
import contextlib
import functools
import json
import marshal
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.preloaded import VARIABLES
from tests.support.preloaded.client import process, receive


def run_command(
    module: str, arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str] | None:
    """Return the result of ``python -m MODULE``; None: it must be started.

    Args:
        module: module of the command.
        arguments: arguments after the name of the command.
        cwd: working folder of the command.
        environment: environment variables of the command.
        timeout: seconds after which it is killed.

    Raises:
        subprocess.TimeoutExpired: the command took longer.
    """
    server = environment.get(VARIABLES["commands"])
    if not server:
        return None
    words = ["-m", module, *arguments]
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        connection.settimeout(timeout)
        connection.connect(server)
        (output, output_end), (errors, errors_end) = os.pipe(), os.pipe()
        streams = [stack.enter_context(open(file, encoding="utf-8")) for file in (output, errors)]
        try:
            described = process([0, 1, 2], words, environment, str(cwd), _path(environment.get("PYTHONPATH", "")))
            files = array.array("i", [0, output_end, errors_end])
            connection.sendmsg([marshal.dumps(described)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        finally:
            os.close(output_end)
            os.close(errors_end)
        if "pid" not in receive(connection):
            return None
        threads = stack.enter_context(ThreadPoolExecutor(len(streams)))
        reading = [threads.submit(stream.read) for stream in streams]
        try:
            status = receive(connection)["status"]
        except TimeoutError:
            connection.close()  # which kills it
            raise subprocess.TimeoutExpired(words, timeout) from None
        return subprocess.CompletedProcess(
            words, os.waitstatus_to_exitcode(status), *(read.result() for read in reading)
        )


@functools.cache
def _path(folders: str) -> list[str]:
    """Return the module path with which Python starts, before it adds the script's folder or the working folder."""
    code = "import json, sys; print(json.dumps(sys.path[1:]))"
    environment = {**os.environ, "PYTHONPATH": folders}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return list(json.loads(result.stdout))
