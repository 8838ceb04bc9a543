"""Flaws in the names and kinds of an archive's members, common to all forms."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath
from typing import Literal

# Far more than any model needs, far less than does harm: a directory of a gigabyte is an attack.
MAX_MEMBERS = 100_000
MAX_NAME = 1024
# Weights shrink by a few percent when deflated, text to a tenth; the limit of deflate is a thousandth.
_MAX_RATIO = 200
_RATIO_FROM = 100 << 20  # bytes below which a high ratio does no harm


EntryKind = Literal["file", "folder", "link", "special"]


class Kind(Enum):
    """The kinds of flaws."""

    OUTSIDE = "outside"
    TWICE = "twice"
    SPECIAL = "special"
    CASE = "case"
    BOMB = "bomb"
    INCONSISTENT = "inconsistent"
    CLASH = "clash"


@dataclass(frozen=True)
class Flaw:
    """A reason to reject an archive: the member in question (empty: the archive), and the problem."""

    kind: Kind
    member: str
    what: str


@dataclass(frozen=True)
class Entry:
    """A member as an archive declares it; sizes are in bytes."""

    name: str
    size: int
    kind: EntryKind = "file"
    packed: int | None = None  # compressed size; None: it is not compressed
    offset: int | None = None  # offset of its content in the archive's file; None: the content is not stored unchanged
    crc: int = 0


def most_content(packed: int) -> int:
    """Return the largest size of ``packed`` compressed bytes when they are extracted; more is an attack."""
    return max(_RATIO_FROM, _MAX_RATIO * packed)


def plain_name(name: str) -> str:
    """Return a member's name without ``.`` and empty parts; a name that is no path below a folder is not changed."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return name  # a flaw, which is reported with this name
    plain = "/".join(part for part in parts if part not in ("", "."))
    return f"{plain}/" if name.endswith("/") and plain else plain or name


def kind_of_mode(mode: int) -> EntryKind:
    """Return the kind of an entry with a Unix mode; without a type in the mode, it is a file."""
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISLNK(mode):
        return "link"
    return "file" if stat.S_ISREG(mode) or not stat.S_IFMT(mode) else "special"


def flaws(entries: Iterable[Entry]) -> Iterator[Flaw]:
    """Yield the flaws of members, judged only by their names, kinds and sizes."""
    names: dict[str, Entry] = {}
    folded: dict[str, str] = {}
    folders: set[str] = set()
    for number, entry in enumerate(entries):
        name = entry.name
        quoted = repr(name if len(name) <= 80 else f"{name[:77]}...")
        if number >= MAX_MEMBERS:
            yield Flaw(Kind.BOMB, "", f"there are more than {MAX_MEMBERS} members")
            return
        if problem := _outside(name):
            yield Flaw(Kind.OUTSIDE, name, f"the member {quoted} {problem}")
            continue
        if entry.kind in ("link", "special"):
            kind = "a symbolic or hard link" if entry.kind == "link" else "a device, a pipe or a socket"
            yield Flaw(Kind.SPECIAL, name, f"the member {quoted} is {kind}")
            continue
        if entry.kind == "folder":
            folders.add(name.rstrip("/"))
            continue
        if name in names:
            yield Flaw(Kind.TWICE, name, f"the member {quoted} is there twice")
            continue
        if (other := folded.get(name.casefold())) is not None:
            yield Flaw(Kind.CASE, name, f"the members {other!r} and {quoted} differ only in case")
        if entry.packed is not None and entry.size > most_content(entry.packed):
            yield Flaw(Kind.BOMB, name, f"the member {quoted} would grow from {entry.packed} to {entry.size} bytes")
        names[name] = entry
        folded[name.casefold()] = name
    for folder in {PurePosixPath(name).parent for name in names}:
        folders.update(map(str, (folder, *folder.parents)))
    for name in sorted(folders & names.keys()):
        yield Flaw(Kind.CLASH, name, f"{name!r} is both a file and a folder")


def _outside(name: str) -> str:
    """Return the reason why a name cannot be a path below a folder; empty if it can."""
    parts = name.split("/")
    if not name.strip("/") or name.startswith("/") or ".." in parts:
        return "would be written outside of its folder"
    if "\\" in name or (len(parts[0]) > 1 and parts[0][1] == ":"):
        return "would be written outside of its folder on some systems"
    if "" in parts[:-1] or "." in parts:
        return "has no plain path"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "has control characters in its name"
    try:
        long = len(name.encode()) > MAX_NAME or any(len(part.encode()) > 255 for part in parts)
    except UnicodeEncodeError:
        return "has a name that is not Unicode"
    return "has a name that is too long" if long else ""
