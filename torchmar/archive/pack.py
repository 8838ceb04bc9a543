"""Write an archive: deterministic, stored, sorted, and there as a whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import time
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from torchmar.archive import digests
from torchmar.archive.contents import Source
from torchmar.errors import ArchiveError

_ZIP_EPOCH = 315532800  # 1980-01-01, the earliest time that a zip can hold
_CHUNK = 2 << 20


@dataclass(frozen=True)
class Packed:
    """An archive that was written: where, its digest, its size in bytes and its number of members."""

    path: Path
    digest: str
    size: int
    members: int


def pack(members: Mapping[str, Source], destination: Path) -> Packed:
    """Write ``members`` (bytes or files, by path in the archive) to ``destination``.

    The same members give the same bytes on any machine: they are stored, not deflated,
    sorted by name, with one time (``SOURCE_DATE_EPOCH``, or zip's earliest) and mode 0644.
    ``MAR-INF/SHA256SUMS`` is added, after all others, since it is made of them.

    Raises:
        ArchiveError: a file cannot be read or the archive cannot be written;
            an archive that was there before is untouched.
    """
    when = _date_time()
    sums: dict[str, str] = {}
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _appearing(destination) as stream:
            with zipfile.ZipFile(stream, "w") as archive, ThreadPoolExecutor(1) as hashing:
                for name, source in sorted(members.items()):
                    with _open(source) as content, archive.open(_info(name, content, when), "w") as member:
                        sums[name] = _copy(content, member, hashing)
                text = digests.show(sums)
                archive.writestr(_info(digests.PATH, io.BytesIO(text), when), text)
            size = stream.tell()
    except OSError as error:
        raise ArchiveError(f"{destination}: cannot be written: {error.strerror or error}: {error.filename}") from None
    return Packed(destination, digests.archive_digest(text), size, len(members) + 1)


@contextlib.contextmanager
def _appearing(destination: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``destination`` when the block ends well, and vanishes when not."""
    # A name of its own, in the same folder: two builds do not meet, and the rename is atomic.
    part = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as stream:
            yield stream
        os.replace(part, destination)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _open(source: Source) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb", buffering=0)


def _info(name: str, content: IO[bytes], when: tuple[int, int, int, int, int, int]) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, when)
    info.create_system = 3  # Unix, wherever we run: the mode below is Unix's
    info.external_attr = 0o100644 << 16
    info.file_size = content.seek(0, os.SEEK_END)  # decides whether the header needs Zip64
    content.seek(0)
    return info


def _copy(content: IO[bytes], member: IO[bytes], hashing: ThreadPoolExecutor) -> str:
    """Copy ``content`` to ``member``, hashing one chunk while the next is read and written."""
    digest = hashlib.sha256()
    buffers = [bytearray(_CHUNK), bytearray(_CHUNK)]
    pending: list[Future[None] | None] = [None, None]
    turn = 0
    while True:
        if waiting := pending[turn]:
            waiting.result()
        count = content.readinto(buffers[turn])  # type: ignore[attr-defined]
        if not count:
            break
        chunk = memoryview(buffers[turn])[:count]
        pending[turn] = hashing.submit(digest.update, chunk)
        member.write(chunk)
        turn = 1 - turn
    for last in pending:
        if last:
            last.result()
    return digest.hexdigest()


def _date_time() -> tuple[int, int, int, int, int, int]:
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if text and not text.isdigit():
        raise ArchiveError(f"SOURCE_DATE_EPOCH={text}: not a number of seconds since 1970")
    moment = time.gmtime(max(int(text or 0), _ZIP_EPOCH))
    return (moment.tm_year, moment.tm_mon, moment.tm_mday, moment.tm_hour, moment.tm_min, moment.tm_sec)
