"""Install the requirements of an archive with pip."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path

from torchmar.server.models.commands import supervised
from torchmar.server.telemetry import logs

_CHUNK = 1 << 20
_ERROR_LINES, _LINE_LENGTH = 15, 500  # of pip's last output, in the error; characters of each


class InstallError(Exception):
    """pip failed.

    Attributes:
        lines: the last lines of its output.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        super().__init__()
        self.lines = tuple(lines)


async def install(
    requirements_file: str, target: Path, *, model_name: str, archive_folder: Path, environment: Mapping[str, str]
) -> None:
    """Install requirements into a folder; cancelling ends pip.

    Args:
        requirements_file: its path in the archive.
        target: the folder for the packages.
        model_name: for the log, which gets pip's output.
        archive_folder: with the archive's content; requirements may be files of the archive.
        environment: variables of pip.

    Raises:
        InstallError: pip failed.
    """
    command = [sys.executable, "-m", "pip", "install", "--target", str(target), "-r", requirements_file]
    command += ["--no-input", "--no-color", "--progress-bar", "off", "--disable-pip-version-check"]
    last_lines: deque[str] = deque(maxlen=_ERROR_LINES)

    def log(line: bytes) -> None:
        if text := line.decode("utf-8", "replace").strip()[:_LINE_LENGTH]:
            logs.SERVER.info("pip for %s: %s", model_name, text)
            last_lines.append(text)

    async with supervised(
        command,
        cwd=archive_folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    ) as process:
        assert process.stdout
        remainder = b""
        while data := await process.stdout.read(_CHUNK):
            *lines, remainder = (remainder + data).split(b"\n")
            for line in lines:
                log(line)
        log(remainder)
        code = await process.wait()
    if code:
        raise InstallError(last_lines)
