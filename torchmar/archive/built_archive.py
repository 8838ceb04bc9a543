"""The result of writing an archive: path, size, digest and notes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Note(NamedTuple):
    """A finding of the checks about an archive that was built.

    Attributes:
        code: the code of the finding, such as ``MAR504``.
        severity: ``error`` or ``warning``.
        text: the finding as it is printed.
    """

    code: str
    severity: str
    text: str


@dataclass(frozen=True)
class BuiltArchive:
    """An archive that was written, or that was up to date.

    Attributes:
        path: the file or folder.
        digest: the SHA-256 of ``MAR-INF/SHA256SUMS``, in hexadecimal.
        size: bytes of the file, or of all files of the folder.
        members: the number of files in it.
        unchanged: whether the archive was up to date, so that nothing was written.
        notes: the findings of the checks about it; None if it was not checked.
        converted: what was made of weights of another framework, and how far the answers of both differ; empty for
            weights that are packed as they are.
    """

    path: Path
    digest: str
    size: int
    members: int
    unchanged: bool = False
    notes: tuple[Note, ...] | None = None
    converted: str = ""

    def show(self) -> str:
        """Return a line that describes it, and one about converted weights."""
        facts = f"{show_size(self.size)}, {self.members} members, sha256:{self.digest[:16]}"
        converted = f"\n  {self.converted}" if self.converted else ""
        return f"{self.path}  {facts}{', up to date' if self.unchanged else ''}{converted}"


def show_size(count: float) -> str:
    """Return a number of bytes as people read it: ``57.5 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
