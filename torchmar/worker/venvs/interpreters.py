"""The interpreters on this machine: that of this process, and those that uv finds."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchmar.errors import WorkerError
from torchmar.worker.venvs import uv

LEAST = (3, 10)  # required by the code of worker processes

# Properties that determine the wheels for an interpreter.
_QUERY = """
import json, platform, sys, sysconfig
print(json.dumps([list(sys.version_info[:3]), sys.implementation.cache_tag, sysconfig.get_platform(),
                  platform.libc_ver()]))
"""
_QUERY_SECONDS = 60


@dataclass(frozen=True)
class Interpreter:
    """An interpreter.

    Attributes:
        path: path of the program.
        version: version, such as 3.11.2.
        tag: tag of its implementation and version: ``cpython-311``.
        platform: system, processor and C library.
    """

    path: str
    version: str
    tag: str
    platform: str


def find(version: str) -> Interpreter:
    """Return an interpreter with a version: that of this process, or one installed on this machine.

    Nothing is downloaded, unless the variable ``UV_PYTHON_DOWNLOADS`` allows it.

    Args:
        version: ``3.11`` or ``3.11.2``.

    Raises:
        WorkerError: there is none, or its version is too old for workers.
    """
    if parts(version) < LEAST:
        least = ".".join(map(str, LEAST))
        raise WorkerError(f"Python {version} is too old: workers need {least} or a later version")
    if is_own(version):
        tag = str(sys.implementation.cache_tag)
        return _interpreter(sys.executable, sys.version_info[:3], tag, sysconfig.get_platform(), platform.libc_ver())
    path = of_pyenv(version) or _of_uv(version)
    try:
        process = subprocess.run(
            [path, "-I", "-c", _QUERY], capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True
        )
        return _interpreter(os.path.realpath(path), *json.loads(process.stdout))  # a link may get another target
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        raise WorkerError(f"{path}, which uv has found as Python {version}, cannot be run: {error}") from None


def _of_uv(version: str) -> str:
    command = ["python", "find", "--no-project", "--system", *uv.PYTHON_DOWNLOADS, version]
    try:
        return uv.output(command)
    except uv.UvError as error:
        reason = str(error).partition("\n")[0]
        raise WorkerError(
            f"this machine has no Python {version}: {reason}",
            hint="install it, or set UV_PYTHON_DOWNLOADS=automatic for uv to download it",
        ) from None


def of_pyenv(version: str) -> str | None:
    """Return pyenv's newest interpreter with a version; uv only finds the active ones."""
    folder = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
    numbers = "".join(f"{number}." for number in parts(version))
    candidates = []
    for program in folder.glob(f"{parts(version)[0]}.*/bin/python"):
        name = program.parents[1].name
        if re.fullmatch(r"\d+\.\d+\.\d+", name) and f"{name}.".startswith(numbers):
            candidates.append((parts(name), str(program)))
    return max(candidates)[1] if candidates else None


def is_own(version: str) -> bool:
    """Return whether this process runs a version of Python."""
    numbers = parts(version)
    return sys.implementation.name == "cpython" and sys.version_info[: len(numbers)] == numbers


def parts(version: str) -> tuple[int, ...]:
    """Return the numbers of a version."""
    return tuple(int(part) for part in version.split("."))


def _interpreter(path: str, version: Sequence[int], tag: str, system: str, libc: Sequence[str]) -> Interpreter:
    return Interpreter(path, ".".join(map(str, version)), tag, f"{system}-{''.join(libc)}")
