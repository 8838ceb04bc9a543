"""Temporary paths for files that atomically replace another when complete."""

from __future__ import annotations

import os
from pathlib import Path


def temporary_path(destination: Path) -> Path:
    """Return a hidden, unique path in the folder of ``destination``.

    In the same folder a rename is atomic, and with a name of its own one writer never meets another.
    """
    return destination.with_name(f".{destination.name}.{os.urandom(4).hex()}.part")
