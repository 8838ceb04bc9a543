"""Starting the process of a conversion, and reading its result."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchmar
from torchmar import openmp
from torchmar.errors import TorchmarError


class ConversionError(TorchmarError):
    """A process of a conversion rejected the model, or ended without a result (``crashed``)."""

    def __init__(self, message: str, *, hint: str = "", crashed: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.crashed = crashed


def run(module: str, job: Mapping[str, Any], work: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a job in a separate process.

    Args:
        module: module of `torchmar.conversion` that calls `torchmar.conversion.process.main`.
        job: the job, as JSON values.
        work: empty working folder, so that the process imports no file of the user.
        environment: variables in addition to those of this process.

    Returns:
        The result.

    Raises:
        ConversionError: the process rejects the model, or ends without a result.
    """
    paths = [str(Path(torchmar.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.run(
        [sys.executable, "-m", f"{__package__}.{module}"],
        input=json.dumps(job),
        cwd=work,
        env={
            **openmp.short_wait(os.environ),
            **os.environ,
            **environment,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        capture_output=True,
        text=True,
        errors="replace",
    )
    try:
        answer = json.loads(process.stdout)
    except ValueError:
        lines = process.stderr.strip().splitlines()
        if lines and lines[-1].startswith(f"OSError: [Errno {errno.ENOSPC}]"):  # no other format would need less space
            raise ConversionError(
                "no space left on the device of the result, or of temporary files",
                hint="TMPDIR names another folder for temporary files",
            ) from None
        raise ConversionError(
            f"the process of the conversion ended with {process.returncode}: {lines[-1] if lines else 'no output'}",
            crashed=True,
        ) from None
    if rejected := answer.get("rejected"):
        raise ConversionError(rejected["message"], hint=rejected["hint"])
    return dict(answer["converted"])
