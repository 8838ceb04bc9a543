"""A fast path of ``torchmar build`` for archives that are all up to date."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from torchmar.archive.building import recipes_here, up_to_date


def print_if_up_to_date(arguments: Sequence[str]) -> bool:
    """Print the output of build and return True if all archives are up to date; else return False."""
    if arguments[:1] != ["build"]:
        return False
    recipes, store = _parsed(list(arguments[1:]))
    if recipes is None:
        return False
    archives = [up_to_date(recipe, store) for recipe in recipes or recipes_here()]
    if not archives or not all(packed and packed.notes is not None for packed in archives):
        return False
    if any(note.severity == "error" for packed in archives if packed for note in packed.notes or ()):
        return False
    for packed in filter(None, archives):
        sys.stderr.write("".join(f"{note.text}\n" for note in packed.notes or ()))
        sys.stdout.write(f"{packed.show()}\n")
    return True


def _parsed(arguments: list[str]) -> tuple[list[Path] | None, Path]:
    """Return the recipes and the store; None for the recipes if there is another option than ``--store``."""
    store = Path("model_store")
    if "--store" in arguments[:-1]:
        index = arguments.index("--store")
        store = Path(arguments[index + 1])
        del arguments[index : index + 2]
    options = any(argument.startswith("-") for argument in arguments)
    return (None if options else [Path(argument) for argument in arguments]), store
