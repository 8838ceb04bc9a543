"""Copy the content of a member into a file and compute its SHA-256 and CRC-32 in the same pass.

Where the file system can, large content is not copied at all: both files share its blocks
(a reflink), and it is only read to be hashed. Elsewhere it passes through memory once: while
one chunk is hashed in a thread (hashlib and zlib release the interpreter), it is written and
the next is read. That leaves the hash as the one thing to wait for, and was measured to be
faster than to have the kernel copy beside it, since every byte is then fetched only once.
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
_STEP = 8 << 20  # what the kernel copies at a time: Ctrl-C and progress wait for no more
_BUFFERS = 4
_LARGE = 8 << 20  # below this, starting threads costs more than they save
_BLOCK = 4096
_FICLONERANGE = 0x4020940D  # of Linux' ioctls: (descriptor, offset, length, offset in the target)
_NOT_BY_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


@dataclass(frozen=True)
class ArchiveSlice:
    """The content of a member that stands in another file as it is, with what is known of it."""

    file: Path
    offset: int
    size: int
    sha256: str
    crc: int


MemberContent = bytes | Path | ArchiveSlice
"""The content of a member: bytes, the file that holds them, or a part of an archive."""


@dataclass(frozen=True)
class Copied:
    """A copy: the digest of its content in hexadecimal, and the checksum."""

    sha256: str
    crc: int


def size_of(source: MemberContent) -> int:
    """Return the number of bytes of a source."""
    if isinstance(source, bytes):
        return len(source)
    return source.size if isinstance(source, ArchiveSlice) else source.stat().st_size


def copy(source: MemberContent, size: int, target: int, offset: int, progress: Progress) -> Copied:
    """Write ``size`` bytes of ``source`` to the descriptor ``target`` at ``offset``.

    Raises:
        ArchiveError: the file was changed meanwhile.
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
    whole = isinstance(source, ArchiveSlice) or before.st_size == size
    if not whole or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ArchiveError(f"{file} was changed while it was packed", hint="build again when it is complete")
    return copied


def _at_once(stream: FileIO, size: int, target: int, offset: int, progress: Progress) -> Copied:
    data = stream.read(size) or b""
    _write(target, data, offset)
    progress(len(data))
    return Copied(hashlib.sha256(data).hexdigest(), crc32(data))


def _transfer(stream: FileIO, size: int, target: int, offset: int, progress: Progress) -> None:
    """Copy without looking at the bytes."""
    start, done = stream.tell(), 0
    while done < size:
        wanted = min(_STEP, size - done)
        count = _by_kernel(stream.fileno(), start + done, wanted, target, offset + done)
        if count is None:
            stream.seek(start + done)
            data = stream.read(min(CHUNK, wanted)) or b""
            _write(target, data, offset + done)
            count = len(data)
        if not count:
            break  # the file has shrunk: the caller sees it
        done += count
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
        done, turn = 0, 0
        while done < size:
            if waiting := pending[turn]:
                waiting.result()
            count = stream.readinto(buffers[turn])
            if not count:
                break
            chunk = memoryview(buffers[turn])[:count]
            pending[turn] = hashing.submit(take, chunk)
            if not shared:
                _write(target, chunk, offset + done)
            done, turn = done + count, (turn + 1) % _BUFFERS
            progress(count)
        for last in pending:
            if last:
                last.result()
    return Copied(digest.hexdigest(), crc)


def _share(source: int, size: int, target: int, offset: int) -> bool:
    """Have the target share the blocks of the source; return whether the file system can."""
    if sys.platform != "linux" or offset % _BLOCK:
        return False
    # Whole blocks: what is left over is shorter than one, and written by hand.
    whole = size - size % _BLOCK
    try:
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("qQQQ", source, 0, whole, offset))
    except OSError:
        return False
    _write(target, os.pread(source, size - whole, whole), offset + whole)
    return True


def _by_kernel(source: int, start: int, size: int, target: int, offset: int) -> int | None:
    """Have the kernel copy up to ``size`` bytes; return how many it did, None where it cannot."""
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
