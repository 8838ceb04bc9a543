"""What commands share: results on stdout, messages on stderr, errors with hints."""

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
    """A console that falls silent when its reader has gone (``| head``), so that the work of a command goes on."""

    def on_broken_pipe(self) -> None:
        """Write no more, and let what Python flushes at the end go nowhere."""
        self.quiet = True
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self.file.fileno())
        os.close(devnull)


out = Console(highlight=False, soft_wrap=True)
#: For commands that start a server, which must not end with the reader of what they print.
lasting_out = LastingConsole(highlight=False, soft_wrap=True)
err = LastingConsole(stderr=True, highlight=False, soft_wrap=True)


def complain(error: TorchmarError) -> None:
    """Print an error: what is wrong and where, what the process behind it said, what to do next."""
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
    """Return a plain table; the columns named in ``right`` are aligned there."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def wrapped(text: str, first: str = "    ", then: str = "    ") -> str:
    """Return a text that fits the terminal; in a pipe a line stays a line."""
    if not sys.stdout.isatty():
        return first + text
    return textwrap.fill(text, max(40, out.width), initial_indent=first, subsequent_indent=then)


def show_table(made: Table) -> None:
    """Print a table to stdout: as wide as the terminal, and as wide as it needs to be in a pipe."""
    if sys.stdout.isatty():
        Console(width=out.width, highlight=False).print(made)
        return
    console = Console(width=10_000, highlight=False)
    with console.capture() as text:
        console.print(made)
    out.print("\n".join(line.rstrip() for line in text.get().splitlines()), markup=False)
