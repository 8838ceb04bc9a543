"""Output of the commands: results on stdout, messages on stderr, errors with hints."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from torchmar.errors import EngineError, LoadError, ModelFailedError, RecipeError, TorchmarError, WorkerError

if TYPE_CHECKING:
    from rich.table import Table


class LastingConsole(Console):
    """A console that ignores a closed pipe (``| head``), so that the command continues its work."""

    def on_broken_pipe(self) -> None:
        """Stop writing; redirect the data that Python flushes at exit to /dev/null."""
        self.quiet = True
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self.file.fileno())
        os.close(devnull)


out = Console(highlight=False, soft_wrap=True)
#: For commands that start a server: the server must not end when a reader of their output ends.
lasting_out = LastingConsole(highlight=False, soft_wrap=True)
err = LastingConsole(stderr=True, highlight=False, soft_wrap=True)


def complain(error: TorchmarError) -> None:
    """Print an error: traceback or log of the process, message, hint."""
    trace = error.traceback if isinstance(error, LoadError | ModelFailedError) else ""
    log = error.log if isinstance(error, WorkerError | EngineError) and not trace else ""
    for text in (trace, log):
        if text.strip():
            err.print(escape(text.rstrip()), style="dim")
    if isinstance(error, RecipeError):
        for problem in error.problems:
            err.print(f"[red]error:[/] {escape(problem.show())}")
    else:
        err.print(f"[red]error:[/] {escape(error.message)}")
    if error.hint:
        err.print(f"[cyan]hint:[/] {escape(error.hint)}")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> Table:
    """Return a plain table; the columns named in ``right`` are aligned right."""
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for heading in headings:
        result.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        result.add_row(*map(escape, row))
    return result


def wrapped(text: str, first: str = "    ", then: str = "    ") -> str:
    """Return a text wrapped to the width of the terminal; one line if stdout is a pipe."""
    if not sys.stdout.isatty():
        return first + text
    return textwrap.fill(text, max(40, out.width), initial_indent=first, subsequent_indent=then)


def show_table(content: Table) -> None:
    """Print a table to stdout: as wide as the terminal; in a pipe, as wide as its content."""
    if sys.stdout.isatty():
        Console(width=out.width, highlight=False).print(content)
        return
    console = Console(width=10_000, highlight=False)
    with console.capture() as text:
        console.print(content)
    out.print("\n".join(line.rstrip() for line in text.get().splitlines()), markup=False)
