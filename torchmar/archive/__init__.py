"""The archive: pack a recipe into a ``.mar``; open, list or extract an archive; derive another one from it.

::

    recipe --contents--> {path in the archive: bytes or file} --pack--> NAME-VERSION.mar --Archive--> members

The names below are imported when they are used, because the import of the recipe's modules
takes longer than the test whether a build is up to date.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchmar.archive.building import build
    from torchmar.archive.built_archive import BuiltArchive, Note
    from torchmar.archive.collecting import collect_members
    from torchmar.archive.derivation import derive
    from torchmar.archive.importing import import_archive
    from torchmar.archive.packing import pack, pack_folder, pack_tgz
    from torchmar.archive.read import Archive, Member

__all__ = [
    "Archive",
    "BuiltArchive",
    "Member",
    "Note",
    "build",
    "collect_members",
    "derive",
    "import_archive",
    "pack",
    "pack_folder",
    "pack_tgz",
]

_MODULES = {
    "Archive": "read",
    "Member": "read",
    "BuiltArchive": "built_archive",
    "Note": "built_archive",
    "build": "building",
    "collect_members": "collecting",
    "derive": "derivation",
    "import_archive": "importing",
    "pack": "packing",
    "pack_folder": "packing",
    "pack_tgz": "packing",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"torchmar.archive.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
