"""Files that atomically replace another when complete."""

from __future__ import annotations

import os
from pathlib import Path

from torchmar.errors import TorchmarError


def temporary_path(destination: Path) -> Path:
    """Return a hidden, unique path in the folder of ``destination``.

    In the same folder a rename is atomic, and with a name of its own one writer never meets another.
    """
    return destination.with_name(f".{destination.name}.{os.urandom(4).hex()}.part")


def write_text(text: str, path: Path) -> None:
    """Write a text; a link is followed.

    Raises:
        TorchmarError: the file cannot be written, and is as before.
    """
    part = temporary_path(path.resolve())
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path.resolve())
    except OSError as error:
        part.unlink(missing_ok=True)
        raise TorchmarError(f"{path} cannot be written: {error.strerror}") from None
