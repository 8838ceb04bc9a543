"""Copying a member's content into a file, with its SHA-256 and CRC-32 in the same pass.

If the file system supports it, large content is not copied: both files share its blocks (a
reflink), and it is read only for the hash. Otherwise it passes through memory once: while a
thread hashes one chunk (hashlib and zlib release the interpreter), the chunk is written and
the next one is read. Only the hash then takes time. This was measured to be faster than a
copy by the kernel at the same time, because every byte is read only once.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from torchmar.errors import ArchiveError

try:
    from zlib_ng.zlib_ng import crc32  # ten times faster than zlib's
except ImportError:
    from zlib import crc32

Progress = Callable[[int], None]
"""Called with the number of bytes copied since the last call."""

CHUNK = 1 << 20
_STEP = 8 << 20  # size of a copy by the kernel, after which Ctrl-C and progress are handled
_BUFFERS = 4
_LARGE = 8 << 20  # size below which threads cost more than they save
_BLOCK = 4096
_FICLONERANGE = 0x4020940D  # ioctl of Linux: (descriptor, offset, length, offset in the target)
_NOT_BY_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


@dataclass(frozen=True)
class ArchiveSlice:
    """The unchanged content of a member within another file, with its known digest and checksum."""

    file: Path
    offset: int
    size: int
    sha256: str
    crc: int


MemberContent = bytes | Path | ArchiveSlice
"""The content of a member: bytes, a file, or a part of an archive."""


@dataclass(frozen=True)
class Copied:
    """A copy, with the hexadecimal digest and the checksum of its content."""

    sha256: str
    crc: int


def size_of(source: MemberContent) -> int:
    """Return the size of a source in bytes."""
    if isinstance(source, bytes):
        return len(source)
    return source.size if isinstance(source, ArchiveSlice) else source.stat().st_size


def copy(source: MemberContent, size: int, target: int, offset: int, progress: Progress) -> Copied:
    """Write ``size`` bytes of ``source`` to the descriptor ``target`` at ``offset``.

    Raises:
        ArchiveError: the file was changed during the copy.
        OSError: it cannot be read, or the target cannot be written.
    """
    if isinstance(source, bytes):
        _write(target, source, offset)
        progress(size)
        return Copied(hashlib.sha256(source).hexdigest(), crc32(source))
    file = source.file if isinstance(source, ArchiveSlice) else source
    with file.open("rb", buffering=0) as stream:
        before = os.fstat(stream.fileno())
        if isinstance(source, ArchiveSlice):
            stream.seek(source.offset)
            _transfer(stream, size, target, offset, progress)
            copied = Copied(source.sha256, source.crc)
        elif size < _LARGE:
            copied = _at_once(stream, size, target, offset, progress)
        else:
            copied = _hashing(stream, size, target, offset, progress)
        after = os.fstat(stream.fileno())
    complete = isinstance(source, ArchiveSlice) or before.st_size == size
    if not complete or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ArchiveError(f"{file} was changed while it was packed", hint="build again when it is complete")
    return copied


def _at_once(stream: FileIO, size: int, target: int, offset: int, progress: Progress) -> Copied:
    data = stream.read(size) or b""
    _write(target, data, offset)
    progress(len(data))
    return Copied(hashlib.sha256(data).hexdigest(), crc32(data))


def _transfer(stream: FileIO, size: int, target: int, offset: int, progress: Progress) -> None:
    """Copy without reading the content."""
    start, copied = stream.tell(), 0
    while copied < size:
        length = min(_STEP, size - copied)
        count = _by_kernel(stream.fileno(), start + copied, length, target, offset + copied)
        if count is None:
            stream.seek(start + copied)
            data = stream.read(min(CHUNK, length)) or b""
            _write(target, data, offset + copied)
            count = len(data)
        if not count:
            break  # the file has become shorter, which the caller notices
        copied += count
        progress(count)


def _hashing(stream: FileIO, size: int, target: int, offset: int, progress: Progress) -> Copied:
    digest, crc = hashlib.sha256(), 0

    def take(chunk: memoryview) -> None:
        nonlocal crc
        digest.update(chunk)
        crc = crc32(chunk, crc)

    shared = _share(stream.fileno(), size, target, offset)
    buffers = [bytearray(CHUNK) for _ in range(_BUFFERS)]
    pending: list[Future[None] | None] = [None for _ in buffers]
    with ThreadPoolExecutor(1) as hashing:
        copied, turn = 0, 0
        while copied < size:
            if waiting := pending[turn]:
                waiting.result()
            count = stream.readinto(buffers[turn])
            if not count:
                break
            chunk = memoryview(buffers[turn])[:count]
            pending[turn] = hashing.submit(take, chunk)
            if not shared:
                _write(target, chunk, offset + copied)
            copied, turn = copied + count, (turn + 1) % _BUFFERS
            progress(count)
        for last in pending:
            if last:
                last.result()
    return Copied(digest.hexdigest(), crc)


def _share(source: int, size: int, target: int, offset: int) -> bool:
    """Let the target share the blocks of the source; return whether the file system supports it."""
    if sys.platform != "linux" or offset % _BLOCK:
        return False
    # Only whole blocks can be shared: the rest, shorter than a block, is copied.
    length = size - size % _BLOCK
    try:
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("qQQQ", source, 0, length, offset))
    except OSError:
        return False
    _write(target, os.pread(source, size - length, length), offset + length)
    return True


def _by_kernel(source: int, start: int, size: int, target: int, offset: int) -> int | None:
    """Let the kernel copy up to ``size`` bytes; return the number of copied bytes, None if it does not support it."""
    try:
        return os.copy_file_range(source, target, size, start, offset)
    except AttributeError:  # macOS
        return None
    except OSError as error:
        if error.errno in _NOT_BY_KERNEL:
            return None
        raise


def _write(target: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(target, view, offset)
        view, offset = view[count:], offset + count
