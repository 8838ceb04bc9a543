"""What is known of an archive that was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Packed:
    """An archive that was written: where, its digest, its size in bytes and its number of members.

    ``unchanged`` tells that it was there already and nothing was written.
    """

    path: Path
    digest: str
    size: int
    members: int
    unchanged: bool = False
