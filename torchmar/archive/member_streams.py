"""Streams of an archive's members: a stream for a part of a file, and errors for damaged content."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
    OSError,
)
"""Exceptions from reading a member whose bytes differ from the archive's declaration."""


class Window(io.RawIOBase):
    """A part of a file, read like a separate file.

    Args:
        path: the file.
        offset: start of the part in bytes.
        size: length of the part in bytes.
    """

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._stream = open(path, "rb", buffering=0)
        self._offset, self._size, self._position = offset, size, 0

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        self._stream.seek(self._offset + self._position)
        count = self._stream.readinto(view) or 0
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()
