"""Names for files that take the place of another when they are complete."""

from __future__ import annotations

import os
from pathlib import Path


def temporary_path(destination: Path) -> Path:
    """Return a hidden name in the folder of ``destination`` that nobody else uses.

    In the same folder a rename is atomic, and with a name of its own one writer never meets another.
    """
    return destination.with_name(f".{destination.name}.{os.urandom(4).hex()}.part")
