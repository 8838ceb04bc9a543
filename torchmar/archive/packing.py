"""Writing an archive: deterministic, stored, sorted, atomic."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from torchmar.archive import copying, digests
from torchmar.archive.built_archive import BuiltArchive
from torchmar.archive.copying import MemberContent, Progress
from torchmar.archive.member_streams import Window
from torchmar.archive.zip import ZipWriter
from torchmar.atomic import temporary_path
from torchmar.errors import ArchiveError

_ZIP_EPOCH = 315532800  # 1980-01-01, the earliest time that a zip can hold
_PAGE = 4096
_MAPPED = 64 << 10  # members from this size on start at a page; smaller ones are not worth a mapping


def pack(
    members: Mapping[str, MemberContent], destination: Path, progress: Progress = lambda count: None
) -> BuiltArchive:
    """Write ``members`` (bytes or files, by path in the archive) to ``destination``.

    The same members give the same bytes on any machine: they are stored, not deflated,
    sorted by name, with one time (``SOURCE_DATE_EPOCH``, or zip's earliest) and mode 0644.
    Members of 64 KiB and more start at a multiple of 4096 bytes, so that a reader can map
    them in place. ``MAR-INF/SHA256SUMS`` is added after all others, because it contains their digests.

    Args:
        members: members by path in the archive.
        destination: path of the file; its folder is made if necessary.
        progress: called with the number of bytes copied since the previous call.

    Raises:
        ArchiveError: a file cannot be read or the archive cannot be written;
            an existing archive is then not changed.
    """
    date_time = _date_time()
    sums: dict[str, str] = {}
    with _archive_errors(destination), _replacing(destination) as stream:
        descriptor = stream.fileno()
        writer = ZipWriter(descriptor, date_time)

        def write(name: str, source: MemberContent) -> None:
            size = copying.size_of(source)
            offset = writer.begin(name, size, _PAGE if size >= _MAPPED else 1)
            copied = copying.copy(source, size, descriptor, offset, progress)
            writer.end(copied.crc)
            sums[name] = copied.sha256

        for name, source in sorted(members.items()):
            write(name, source)
        text = digests.show(sums)
        write(digests.PATH, text)
        size = writer.close()
    return BuiltArchive(destination, digests.archive_digest(text), size, len(members) + 1)


def pack_folder(
    members: Mapping[str, MemberContent], destination: Path, progress: Progress = lambda count: None
) -> BuiltArchive:
    """Write ``members`` as files below the folder ``destination``, which TorchServe registers without extraction.

    An existing folder is replaced as a whole. Raises ArchiveError as `pack` does.
    """
    sums: dict[str, str] = {}
    total = 0
    part = temporary_path(destination)
    with _archive_errors(destination):
        try:
            for name, source in sorted(members.items()):
                target = part / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb", buffering=0) as stream:
                    size = copying.size_of(source)
                    sums[name] = copying.copy(source, size, stream.fileno(), 0, progress).sha256
                    total += size
            text = digests.show(sums)
            (part / digests.PATH).parent.mkdir(parents=True, exist_ok=True)
            (part / digests.PATH).write_bytes(text)
            _replace_folder(part, destination)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return BuiltArchive(destination, digests.archive_digest(text), total + len(text), len(members) + 1)


def pack_tgz(
    members: Mapping[str, MemberContent], destination: Path, folder: str, progress: Progress = lambda count: None
) -> BuiltArchive:
    """Write ``members`` to a ``.tar.gz``, with one time, owner and mode for all, below ``folder`` unless it is empty.

    Raises ArchiveError as `pack` does. It is slower and larger in memory than a ``.mar``, because gzip is one stream.
    """
    import gzip
    import tarfile

    sums: dict[str, str] = {}
    moment = _epoch()

    class Reading(io.RawIOBase):
        """A file that is hashed while tarfile reads it."""

        def __init__(self, stream: BinaryIO) -> None:
            self._stream, self.digest = stream, digests.new()

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            count = self._stream.readinto(buffer)  # type: ignore[attr-defined]
            self.digest.update(buffer[:count])
            progress(count)
            return int(count)

    with _archive_errors(destination), _replacing(destination) as stream:
        # Level 1, because gzip can hardly compress weights. No name and no time in its header.
        with (
            gzip.GzipFile("", "wb", 1, stream, 0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):

            def write(name: str, source: MemberContent) -> None:
                info = tarfile.TarInfo(f"{folder}/{name}" if folder else name)
                info.size, info.mtime, info.mode = copying.size_of(source), moment, 0o644
                with _stream(source) as content:
                    reading = Reading(content)
                    archive.addfile(info, io.BufferedReader(reading, 1 << 16))
                sums[name] = reading.digest.hexdigest()

            for name, source in sorted(members.items()):
                write(name, source)
            text = digests.show(sums)
            write(digests.PATH, text)
        size = stream.tell()
    return BuiltArchive(destination, digests.archive_digest(text), size, len(members) + 1)


@contextlib.contextmanager
def _archive_errors(destination: Path) -> Iterator[None]:
    """Convert an OSError to an error with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ArchiveError(f"{destination}: the disk is full", hint=f"free some of {destination.parent}") from None
        if error.errno == errno.EFBIG:
            raise ArchiveError(f"{destination}: the file system takes no file as large as this") from None
        cause = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        raise ArchiveError(f"{destination} cannot be written: {cause}") from None


@contextlib.contextmanager
def _replacing(destination: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``destination`` if the block succeeds, and is removed otherwise."""
    if destination.is_dir():
        raise ArchiveError(f"{destination} is a folder", hint="remove it, or write somewhere else")
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_path(destination)
    try:
        with open(part, "xb") as stream:
            yield stream
        os.replace(part, destination)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _replace_folder(part: Path, destination: Path) -> None:
    """Move ``part`` to ``destination``. No portable system call swaps folders: it takes two renames."""
    if not destination.exists():
        part.rename(destination)
        return
    if not (destination / "MAR-INF").is_dir():
        raise ArchiveError(f"{destination} is there and is no archive", hint="remove it, or write somewhere else")
    old = temporary_path(destination)
    destination.rename(old)
    try:
        part.rename(destination)
    except BaseException:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _stream(source: MemberContent) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    if isinstance(source, copying.ArchiveSlice):
        # A reader that reads ahead must not get data after the slice.
        with io.BufferedReader(Window(source.file, source.offset, source.size)) as stream:
            yield cast(BinaryIO, stream)
        return
    with source.open("rb") as file:
        yield file


def _epoch() -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if text and not text.isdigit():
        raise ArchiveError(f"SOURCE_DATE_EPOCH={text}: not a number of seconds since 1970")
    return max(int(text or 0), _ZIP_EPOCH)


def _date_time() -> tuple[int, int, int, int, int, int]:
    moment = time.gmtime(_epoch())
    return (moment.tm_year, moment.tm_mon, moment.tm_mday, moment.tm_hour, moment.tm_min, moment.tm_sec)
