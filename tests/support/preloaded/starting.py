"""Starts of workers and servers with a client alone: a whole Python needs three times the time to request a fork."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.preloaded import VARIABLES, client
from tests.support.preloaded.direct import module_path

_FILES = ("/ts/model_service_worker.py", "/torchmar/worker/start.py")
_MODULES = ("torchmar", "torchmar.server")
_STARTUP = str(Path(__file__).with_name("startup"))


@contextlib.contextmanager
def start_clients() -> Iterator[None]:
    """While the context is open, let `subprocess` start a client in place of a worker, a server or a command."""
    execute = subprocess.Popen._execute_child  # type: ignore[attr-defined]

    def execute_child(
        process: subprocess.Popen[Any],
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: Any,
        pass_fds: Any,
        cwd: Any,
        env: Mapping[str, str] | None,
        *others: Any,
    ) -> None:
        if not executable and isinstance(args, list | tuple):
            args = _words([os.fsdecode(word) for word in args], os.environ if env is None else env)
        execute(process, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "_execute_child", execute_child)
        yield


def _words(words: list[str], environment: Mapping[str, str]) -> list[str]:
    """Return the words of a process: those of a client in place of those of a worker, a server or a command."""
    folders, server = environment.get("PYTHONPATH", ""), _server_of(words, environment)
    if server and _STARTUP in folders.split(os.pathsep):
        path = os.pathsep.join(module_path(folders))
        words[1:1] = ["-I", "-S", str(client.__file__), server, sys.prefix, path]
    return words


def _server_of(words: list[str], environment: Mapping[str, str]) -> str | None:
    """Return the path of the socket of the process that forks a process; None: it is not forked."""
    python, first, second, *_ = *words, "", "", ""
    workers = environment.get(VARIABLES["workers"])
    if python != sys.executable or not workers:  # these are separate processes if workers are
        return None
    if first.endswith(_FILES):
        return workers if client.is_forked(words[1:]) else None
    return environment.get(VARIABLES["commands"]) if first == "-m" and second in _MODULES else None
