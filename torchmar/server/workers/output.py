"""The output of a process as lines, read in the server's loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

_LONGEST = 64 << 10  # limit for a line; a longer one is passed in pieces


def open_output(on_line: Callable[[str], None]) -> int:
    """Return the write end of a pipe, which the caller closes after a process has inherited it.

    Args:
        on_line: called with each line, until all write ends are closed.
    """
    read, write = os.pipe()
    os.set_blocking(read, False)
    loop = asyncio.get_running_loop()
    rest = b""

    def read_lines() -> None:
        nonlocal rest
        try:
            data = os.read(read, 65536)
        except BlockingIOError:
            return
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > _LONGEST:
            lines, rest = [*lines, rest], b""
        if not data:
            loop.remove_reader(read)
            os.close(read)
            lines += [rest] if rest else []
        for line in lines:
            on_line(line.decode("utf-8", "replace"))

    loop.add_reader(read, read_lines)
    return write
