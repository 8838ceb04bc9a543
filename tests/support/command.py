"""The command line, run as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.preloaded.direct import run_command

_SECONDS = 120


def torchmar(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    words = [str(argument) for argument in arguments]
    ran = run_module("torchmar", *words, cwd=cwd, environment={**os.environ, "COLUMNS": "80"})
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran


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
