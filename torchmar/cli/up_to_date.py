"""Answer ``torchmar build`` at once when every archive is up to date."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from torchmar.archive.building import recipes_here, up_to_date


def print_if_up_to_date(arguments: Sequence[str]) -> bool:
    """Print what build would, and return True, if there is nothing to build; leave anything else to the command."""
    if arguments[:1] != ["build"]:
        return False
    recipes, store = _parsed(list(arguments[1:]))
    if recipes is None:
        return False
    found = [up_to_date(recipe, store) for recipe in recipes or recipes_here()]
    if not found or not all(packed and packed.notes is not None for packed in found):
        return False
    if any(note.severity == "error" for packed in found if packed for note in packed.notes or ()):
        return False
    for packed in filter(None, found):
        sys.stderr.write("".join(f"{note.text}\n" for note in packed.notes or ()))
        sys.stdout.write(f"{packed.show()}\n")
    return True


def _parsed(arguments: list[str]) -> tuple[list[Path] | None, Path]:
    """Return the recipes and the store; no recipes where there is an option that is not ours to judge."""
    store = Path("model_store")
    if "--store" in arguments[:-1]:
        place = arguments.index("--store")
        store = Path(arguments[place + 1])
        del arguments[place : place + 2]
    options = any(argument.startswith("-") for argument in arguments)
    return (None if options else [Path(argument) for argument in arguments]), store
