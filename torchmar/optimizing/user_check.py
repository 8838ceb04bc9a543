"""The user's own check of a variant: a command whose last line is a metric."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

from torchmar.errors import TorchmarError
from torchmar.optimizing.gate import Metric

VARIABLE = "TORCHMAR_ARCHIVE"
EXAMPLE = 'the last line is a number, such as 0.913, or JSON, such as {"value": 3.2, "lower_is_better": true}'


def run(command: str, archive: Path, *, timeout_s: float) -> Metric:
    """Run a check on an archive and return its metric.

    Args:
        command: a command, split as a shell does, but run without a shell; it gets the path of the archive as its last
            argument and in the environment as ``TORCHMAR_ARCHIVE``. The last line of its output is the metric.
        archive: archive with the variant's weights.
        timeout_s: seconds until it is ended, with all its processes.

    Raises:
        TorchmarError: the command cannot be started, fails, takes too long, or its last line is no metric.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise TorchmarError(f"the check {command!r} is no command: {error}", hint='--check "python eval.py"') from None
    if not words:
        raise TorchmarError("the check is an empty command", hint='--check "python eval.py"')
    environment = {**os.environ, VARIABLE: str(archive.absolute())}
    try:
        process = subprocess.Popen(
            [*words, str(archive.absolute())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise TorchmarError(
            f"the check {command!r} cannot be started: {error.strerror}", hint='--check "python eval.py"'
        ) from None
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise TorchmarError(f"the check {command!r} took more than {timeout_s:g} s") from None
    finally:
        if process.returncode is None:  # not reaped, so that its process group cannot be another one
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        last = next(reversed(errors.strip().splitlines()), "no output")
        raise TorchmarError(f"the check {command!r} ended with {process.returncode}: {last}")
    line = next(reversed(output.strip().splitlines()), "")
    metric = _metric(line)
    if metric is None:
        excerpt = line if len(line) <= 80 else f"{line[:77]}..."
        raise TorchmarError(f"the last line of the check {command!r} is no metric: {excerpt!r}", hint=EXAMPLE)
    return metric


def _metric(line: str) -> Metric | None:
    try:
        document: Any = json.loads(line)
    except ValueError:
        return None
    lower = False
    if isinstance(document, dict):
        lower = document.get("lower_is_better") is True
        numbers = [document["value"]] if "value" in document else [item for item in document.values() if _number(item)]
        document = numbers[0] if len(numbers) == 1 else None
    return Metric(float(document), lower) if _number(document) and math.isfinite(document) else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
