"""The command line, run as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.preloaded.direct import run_command

_SECONDS = 120


def torchmar(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    words, environment = [str(argument) for argument in arguments], {**os.environ, "COLUMNS": "80"}
    ran = run_command(words, cwd=cwd, environment=environment, timeout=_SECONDS) or subprocess.run(
        [sys.executable, "-m", "torchmar", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        env=environment,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran
