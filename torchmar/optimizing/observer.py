"""Callbacks for the progress of an optimisation."""

from __future__ import annotations

from typing import Protocol

from torchmar.optimizing.results import Row


class Observer(Protocol):
    """Callbacks for the progress of an optimisation."""

    def on_step(self, text: str) -> None:
        """Show the current step; an empty text ends it."""

    def on_warning(self, text: str) -> None:
        """Show a problem that does not end the optimisation."""

    def on_row(self, row: Row, baseline: Row, number: int, total: int) -> None:
        """Show a row, whose verdict may later change from slower to chosen; rows are numbered from 1."""
