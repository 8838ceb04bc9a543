"""Progress on a terminal: a bar with rate and remaining time, and a line that changes."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from torchmar.cli.terminal import err

if TYPE_CHECKING:
    from rich.progress import Progress
    from typing_extensions import Self

_DELAY = 1.0  # seconds before a bar is shown


class StepLine:
    """A line with the name of the current step, on a terminal only; a context manager that removes the line.

    The line is written once for each step: redrawing a display would take time from the measurement.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.on_step("")

    def on_step(self, text: str) -> None:
        """Replace the line; an empty text removes it."""
        if err.is_terminal:
            err.file.write(f"\r\x1b[K{text[: err.width - 1]}")
            err.file.flush()


class Bar:
    """A bar that appears after a second, on a terminal only; a context manager."""

    def __init__(self) -> None:
        self._name = ""
        self._total = self._done = 0
        self._started = 0.0
        self._shown: Progress | None = None

    def begin(self, name: str, total: int) -> Bar:
        """Start to count to ``total`` bytes; return a function that takes the number of bytes of each piece."""
        self._name, self._total, self._done, self._started = name, total, 0, time.monotonic()
        return self

    def __call__(self, count: int) -> None:
        """Add ``count`` bytes."""
        self._done += count
        if self._shown:
            self._shown.update(self._shown.task_ids[0], completed=self._done)
        elif err.is_terminal and time.monotonic() - self._started > _DELAY:
            self._shown = self._show()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._shown.stop()

    def _show(self) -> Progress:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        bar = Progress(*columns, TimeRemainingColumn(), console=err, transient=True)
        bar.add_task(self._name, total=self._total, completed=self._done)
        bar.start()
        return bar
