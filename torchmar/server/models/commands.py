"""Commands that the server runs, and that end with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import Process
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmar.worker import START
from torchmar.worker.process.messages import RunCommand, to_wire

_CHUNK = 1 << 20
_LAST_LINES = 15


async def run(
    command: Sequence[str], on_line: Callable[[str], None], *, folder: Path, environment: Mapping[str, str]
) -> tuple[int, list[str]]:
    """Run a command; return its exit status and the last lines of its output. A cancellation ends the command.

    Its output is read continuously, so that the command never has to wait for the server.

    Args:
        command: the program and its arguments.
        on_line: called with each line of its output that is not blank.
        folder: working directory.
        environment: environment variables.
    """
    last_lines: deque[str] = deque(maxlen=_LAST_LINES)

    def add(line: bytes) -> None:
        if text := line.decode("utf-8", "replace").strip():
            on_line(text)
            last_lines.append(text)

    async with supervised(
        command,
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    ) as process:
        assert process.stdout
        async for line in lines_of(process.stdout):
            add(line)
        return await process.wait(), list(last_lines)


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines of an output, of any length, without their line ends."""
    remainder = b""
    while data := await stream.read(_CHUNK):
        *lines, remainder = (remainder + data).split(b"\n")
        for line in lines:
            yield line
    if remainder:
        yield remainder


@contextlib.asynccontextmanager
async def supervised(command: Sequence[str], **options: Any) -> AsyncIterator[Process]:
    """Run a command; its processes end with the context, or with this process, however it ends.

    Args:
        command: the program and its arguments.
        options: keyword arguments of `asyncio.create_subprocess_exec`.
    """
    child_end, lifeline = os.pipe()
    try:
        try:
            message = json.dumps(to_wire(RunCommand(child_end, list(command))))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(START), message), pass_fds=[child_end], start_new_session=True, **options
            )
        finally:
            os.close(child_end)
        try:
            yield process
        except BaseException:
            os.close(lifeline)
            lifeline = -1
            await process.wait()
            raise
    finally:
        if lifeline >= 0:
            os.close(lifeline)
