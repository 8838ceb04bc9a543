"""A file that is downloaded in parts: the received bytes, and the identity of the remote file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

from torchmar.atomic import write_text

_CONTENT, _ORIGIN = "archive", "origin.json"


class PartialFile:
    """The received bytes of a remote file, in their own folder; a later process can continue it.

    Args:
        folder: folder, which is made if it does not exist.

    Attributes:
        path: path of the bytes.
        identity: identity of their remote file: its ETag, its date or its version; empty: there are no bytes, or
            the file cannot be continued.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.path, self._origin = folder / _CONTENT, folder / _ORIGIN
        self.identity = self._read_identity()

    @property
    def size(self) -> int:
        """The number of bytes after which the same remote file can be continued."""
        return self.path.stat().st_size if self.identity and self.path.exists() else 0

    def open_at(self, offset: int, identity: str) -> BinaryIO:
        """Open the file to write bytes of a remote file from ``offset`` on.

        Args:
            offset: position of the first byte to write, at most `size`; 0 for another remote file; later bytes are
                dropped.
            identity: identity of the remote file; empty if it cannot be recognised later.
        """
        if offset == 0 or identity != self.identity:
            # In this order, so that at no moment bytes of one file have the identity of another.
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
        """Do not continue the file, because the remote file has changed."""
        self.identity = ""
        self._origin.unlink(missing_ok=True)

    def _read_identity(self) -> str:
        try:
            return str(json.loads(self._origin.read_bytes())["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
