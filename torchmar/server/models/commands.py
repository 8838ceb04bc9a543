"""Commands that the server runs, ended with the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from typing import Any

from torchmar.worker import START
from torchmar.worker.process.messages import RunCommand, to_wire


@contextlib.asynccontextmanager
async def supervised(command: Sequence[str], **options: Any) -> AsyncIterator[Process]:
    """Run a command; its processes end with the context, and with this process, whatever ends it.

    Args:
        command: the program and its arguments.
        options: of `asyncio.create_subprocess_exec`.
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
