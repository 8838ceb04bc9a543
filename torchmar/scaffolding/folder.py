"""A folder of new files, written completely or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torchmar import atomic


def write(folder: Path, files: Mapping[str, bytes], copied: Mapping[str, Path] | None = None) -> None:
    """Write files to a folder that does not exist; they are written to a temporary folder beside it, which is renamed.

    Args:
        folder: the new folder.
        files: content by path in it; scripts (``#!``) are executable.
        copied: files to copy, by path in it.

    Raises:
        TorchmarError: the folder exists, or cannot be written.
    """
    with atomic.new_folder(folder) as part:
        for name, content in files.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if content.startswith(b"#!"):
                path.chmod(0o755)
        for name, source in (copied or {}).items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
