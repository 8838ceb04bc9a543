"""``.tar.gz`` files with any members, including hostile ones."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def tar_of(file: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    """Write a ``.tar.gz``, and return it; a TarInfo is a member without content, such as a link."""
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file
