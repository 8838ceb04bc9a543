"""Running uv, which makes environments: https://docs.astral.sh/uv/."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torchmar.errors import WorkerError

#: Options of commands that search interpreters. The variable is the user's permission to download them.
PYTHON_DOWNLOADS = () if os.environ.get("UV_PYTHON_DOWNLOADS") else ("--no-python-downloads",)

_LINES, _LENGTH = 15, 500  # limits for the output in an error: last lines, and characters of each
# A configuration file in the working folder, which is the archive's, must not change what is installed.
_COMMON = ("--no-config", "--color", "never", "--no-progress")
# An active environment, and variables with paths of modules, must not affect uv.
_UNSET = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME")

Log = Callable[[str], None]
"""Called with each line of output."""


class UvError(Exception):
    """The command failed; the message is the end of its output."""


def program() -> str:
    """Return the path of the program uv.

    Raises:
        WorkerError: uv is not installed.
    """
    with contextlib.suppress(ImportError, OSError):
        import uv

        return os.fspath(uv.find_uv_bin())
    raise WorkerError(
        "uv, which makes the environments of archives, is not installed", hint="pip install 'torchmar[venv]'"
    )


def run(
    arguments: Sequence[str],
    log: Log = lambda line: None,
    *,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
    files: Sequence[int] = (),
) -> None:
    """Run a command of uv.

    Args:
        arguments: name and arguments of the command.
        log: called with each line of its output.
        folder: working folder; default: the root of the file system.
        variables: environment variables, in addition to those of this process.
        files: descriptors that it inherits.

    Raises:
        UvError: the command failed.
        WorkerError: uv is not installed.
    """
    lines: deque[str] = deque(maxlen=_LINES)
    process = _start(arguments, folder, variables, files, stderr=subprocess.STDOUT)
    try:
        assert process.stdout
        for line in process.stdout:
            if text := line.rstrip()[:_LENGTH]:
                lines.append(text)
                log(text)
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if code:
        raise UvError(_message(lines, code))


def output(arguments: Sequence[str]) -> str:
    """Return the output of a command of uv, without surrounding white space.

    Raises:
        UvError: the command failed.
        WorkerError: uv is not installed.
    """
    process = _start(arguments, None, None, (), stderr=subprocess.PIPE)
    text, errors = process.communicate()
    if process.returncode:
        raise UvError(_message(deque(errors.splitlines(), maxlen=_LINES), process.returncode))
    return text.strip()


def _start(
    arguments: Sequence[str],
    folder: Path | None,
    variables: Mapping[str, str] | None,
    files: Sequence[int],
    *,
    stderr: int,
) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return subprocess.Popen(
        [program(), *arguments, *_COMMON],
        cwd=folder or Path(sys.prefix).anchor,
        env={**environment, **(variables or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        errors="replace",
        pass_fds=files,
    )


def _message(lines: Sequence[str], code: int) -> str:
    """Return the end of uv's output for an error, without uv's own marks."""
    nonempty = [line for line in lines if line.strip()]
    if not nonempty:
        return f"uv ended with exit code {code}"
    first = next((index for index, line in enumerate(nonempty) if line.startswith(("error:", "  × ", "× "))), 0)
    return "\n".join(nonempty[first:]).strip().removeprefix("error: ").removeprefix("× ")
