"""Code in a process with the environment of workers, for checks of packages that are imported there only."""

from __future__ import annotations

import os
import subprocess
import sys

from torchmar.worker.environment import worker_environment


def run(code: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run code with this Python; return its exit code and output.

    Raises:
        subprocess.TimeoutExpired: the process ran longer than ``seconds``.
    """
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=worker_environment(os.environ),
    )
