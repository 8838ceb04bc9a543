"""The commands of the command line, with their options and help."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias, cast

import typer
from typer.core import TyperCommand, TyperGroup

from torchmar.cli.app import app

Command: TypeAlias = TyperCommand | TyperGroup


def command_tree(application: typer.Typer = app) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Yield each command of an application and its groups, with the words of its call after ``torchmar``."""
    return _below(cast(Any, typer.main.get_command(application)), ())  # their common class is private


def _below(command: Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Command]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _below(inner, (*words, name))
