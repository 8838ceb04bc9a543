"""Copy the content of a member into a file, taking its SHA-256 and CRC-32 on the way.

Large files are copied by the kernel where it can (a reflink costs nothing, and no byte passes
through this process), while threads hash what another reads: hashlib and zlib release the
interpreter for every chunk. A chunk stays in the processor's cache from read to hash.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from torchmar.errors import ArchiveError

Progress = Callable[[int], None]
"""Told how many more bytes are done."""

CHUNK = 1 << 20
_STEP = 8 << 20  # what the kernel copies at a time: Ctrl-C and progress wait for no more
_BUFFERS = 4
_LARGE = 8 << 20  # below this, starting threads costs more than they save
_NOT_BY_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


@dataclass(frozen=True)
class Stored:
    """The content of a member that stands in another file as it is, with what is known of it."""

    file: Path
    offset: int
    size: int
    sha256: str
    crc: int


Source = bytes | Path | Stored
"""The content of a member: bytes, the file that holds them, or a part of an archive."""


@dataclass(frozen=True)
class Copied:
    """What was copied: its digest in hexadecimal and its checksum."""

    sha256: str
    crc: int


def size_of(source: Source) -> int:
    """Return the number of bytes of a source."""
    if isinstance(source, bytes):
        return len(source)
    return source.size if isinstance(source, Stored) else source.stat().st_size


def copy(source: Source, size: int, target: int, offset: int, progress: Progress) -> Copied:
    """Write ``size`` bytes of ``source`` to the descriptor ``target`` at ``offset``.

    Raises:
        ArchiveError: the file was changed meanwhile.
        OSError: it cannot be read, or the target cannot be written.
    """
    if isinstance(source, bytes):
        _write(target, source, offset)
        progress(size)
        return Copied(hashlib.sha256(source).hexdigest(), zlib.crc32(source))
    file = source.file if isinstance(source, Stored) else source
    with file.open("rb", buffering=0) as stream:
        before = os.fstat(stream.fileno())
        if isinstance(source, Stored):
            stream.seek(source.offset)
            _transfer(stream, size, target, offset, progress)
            copied = Copied(source.sha256, source.crc)
        elif size < _LARGE:
            copied = _at_once(stream, size, target, offset, progress)
        else:
            copied = _hashing(stream, size, target, offset, progress)
        after = os.fstat(stream.fileno())
    whole = isinstance(source, Stored) or before.st_size == size
    if not whole or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ArchiveError(f"{file} was changed while it was packed", hint="build again when it is complete")
    return copied


def _at_once(stream: FileIO, size: int, target: int, offset: int, progress: Progress) -> Copied:
    data = stream.read(size) or b""
    _write(target, data, offset)
    progress(len(data))
    return Copied(hashlib.sha256(data).hexdigest(), zlib.crc32(data))


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

    def checksum(chunk: memoryview) -> None:
        nonlocal crc
        crc = zlib.crc32(chunk, crc)

    def copy_rest(done: int) -> None:
        while done < size and not stop.is_set():
            count = _by_kernel(stream.fileno(), done, min(_STEP, size - done), target, offset + done)
            if not count:
                break
            done += count

    stop = threading.Event()
    first = _by_kernel(stream.fileno(), 0, CHUNK, target, offset)
    buffers = [bytearray(CHUNK) for _ in range(_BUFFERS)]
    pending: list[list[Future[None]]] = [[] for _ in buffers]
    # A thread for each kind of work, so that every one takes its chunks in order.
    with ThreadPoolExecutor(1) as copying, ThreadPoolExecutor(1) as summing, ThreadPoolExecutor(1) as checking:
        kernel = copying.submit(copy_rest, first) if first else None
        try:
            done, turn = 0, 0
            while done < size:
                for future in pending[turn]:
                    future.result()
                count = stream.readinto(buffers[turn])
                if not count:
                    break
                chunk = memoryview(buffers[turn])[:count]
                pending[turn] = [summing.submit(digest.update, chunk), checking.submit(checksum, chunk)]
                if not kernel:
                    _write(target, chunk, offset + done)
                done, turn = done + count, (turn + 1) % _BUFFERS
                progress(count)
            for future in (*itertools.chain(*pending), *filter(None, [kernel])):
                future.result()
        except BaseException:
            stop.set()
            raise
    return Copied(digest.hexdigest(), crc)


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
