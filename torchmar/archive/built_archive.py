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
    """An archive that was written or was up to date.

    Attributes:
        path: the file or folder.
        digest: the SHA-256 of ``MAR-INF/SHA256SUMS``, in hexadecimal.
        size: bytes of the file, or of all files of the folder.
        members: number of its files.
        unchanged: whether the archive was up to date, so that no file was written.
        notes: findings of the checks; None: it was not checked.
        converted: description of converted weights of another framework, and the difference of the answers; empty if
            the weights are packed unchanged.
    """

    path: Path
    digest: str
    size: int
    members: int
    unchanged: bool = False
    notes: tuple[Note, ...] | None = None
    converted: str = ""

    def show(self) -> str:
        """Return a line that describes the archive, and one about converted weights."""
        facts = f"{show_size(self.size)}, {self.members} members, sha256:{self.digest[:16]}"
        converted = f"\n  {self.converted}" if self.converted else ""
        return f"{self.path}  {facts}{', up to date' if self.unchanged else ''}{converted}"


def show_size(count: float) -> str:
    """Return a number of bytes in a readable form: ``57.5 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
