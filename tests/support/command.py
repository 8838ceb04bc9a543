"""The command line, run as a process or in the process of a test."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.preloaded.direct import run_command
from torchmar import cli

_SECONDS = 120


def torchmar(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    words = [str(argument) for argument in arguments]
    process = run_module("torchmar", *words, cwd=cwd, environment={**os.environ, "COLUMNS": "80"})
    assert process.returncode == code, process.stdout + process.stderr
    return process


def run_module(
    module: str, *arguments: str, cwd: Path, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Run one of torchmar's modules that are commands."""
    return run_command(module, arguments, cwd=cwd, environment=environment, timeout=_SECONDS) or subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        env=environment,
    )


def torchmar_here(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command that starts no process and no server in the process of the test, in a tenth of the time."""
    words = [str(argument) for argument in arguments]
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    status: object = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setenv("COLUMNS", "80")
        patch.setattr(sys, "argv", ["torchmar", *words])
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                cli.main()
        except SystemExit as end:
            status = end.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    printed, complaints = (stream.buffer.getvalue().decode() for stream in (output, errors))
    assert status == code, f"{status}: {printed}{complaints}"
    return subprocess.CompletedProcess(words, code, printed, complaints)
