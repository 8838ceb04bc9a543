"""The check that an archive carries torchmar's handlers as they are installed; their imports then need no check."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from pathlib import Path

from torchmar.archive.collecting import carried
from torchmar.archive.member_streams import READ_ERRORS
from torchmar.checks.finding import Content
from torchmar.errors import TorchmarError
from torchmar.handler_names import CARRIED_PACKAGE

_IMPORT = re.compile(rb"^[ \t]*(?:from[ \t]+(\w+)|import[ \t]+([^#\r\n]+))", re.MULTILINE)


def is_installed(content: Content, roots: AbstractSet[str]) -> bool:
    """Return whether the carried package has the installed files, and imports no other module of the archive.

    Args:
        content: the members of an archive.
        roots: names of the archive's modules and folders at the top level.
    """
    files = {name: file for name, file in carried().items() if isinstance(file, Path)}
    if files.keys() != {name for name in content.sizes if name.startswith(f"{CARRIED_PACKAGE}/")}:
        return False
    imported: set[str] = set()
    for name, file in files.items():
        source = file.read_bytes()
        if content.sizes[name] != len(source) or _read(content, name) != source:
            return False
        if name.endswith(".py"):
            imported |= _imported(source)
    return not (roots - {CARRIED_PACKAGE}) & imported


def _read(content: Content, name: str) -> bytes | None:
    try:
        with content.open(name) as stream:
            return stream.read()
    except (TorchmarError, *READ_ERRORS):
        return None


def _imported(source: bytes) -> set[str]:
    """Return the top-level names of the modules that the import statements of a module name, at any depth."""
    names: set[str] = set()
    for origin, listed in _IMPORT.findall(source):
        names.update(re.findall(r"(?:^|,)\s*(\w+)", (origin or listed).decode("utf-8", "replace")))
    return names
