"""A file that is downloaded in parts: its bytes so far, and which remote file they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

from torchmar.atomic import write_text

_CONTENT, _ORIGIN = "archive", "origin.json"


class PartialFile:
    """The bytes of a remote file that have arrived, in a folder of their own, which a later process can continue.

    Args:
        folder: made if it is not there.

    Attributes:
        path: of the bytes.
        identity: of the remote file that they are of: its ETag, its date or its version; empty: there are none, or
            none that more can be added to.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.path, self._origin = folder / _CONTENT, folder / _ORIGIN
        self.identity = self._read_identity()

    @property
    def size(self) -> int:
        """The number of bytes to which more of the same remote file can be added."""
        return self.path.stat().st_size if self.identity and self.path.exists() else 0

    def open_at(self, offset: int, identity: str) -> BinaryIO:
        """Open the file for bytes of a remote file from ``offset`` on.

        Args:
            offset: at most `size`, and 0 for the bytes of another remote file; the bytes behind it are dropped.
            identity: of the remote file; empty if nothing proves later that it is the same.
        """
        if offset == 0 or identity != self.identity:
            # In this order, so that no moment exists in which bytes of one file count as those of another.
            self._origin.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            self.path.touch()
            if identity:
                write_text(json.dumps({"identity": identity}), self._origin)
            self.identity, offset = identity, 0
        stream = self.path.open("r+b")
        stream.truncate(offset)
        stream.seek(offset)
        return stream

    def forget(self) -> None:
        """Add no more bytes to those that there are: the remote file has changed."""
        self.identity = ""
        self._origin.unlink(missing_ok=True)

    def _read_identity(self) -> str:
        try:
            return str(json.loads(self._origin.read_bytes())["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
