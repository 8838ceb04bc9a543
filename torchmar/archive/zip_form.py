"""An archive as a zip, the usual ``.mar``, whose directory and local entries are compared with each other."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from torchmar.archive.layout import MAX_MEMBERS, Entry, Flaw, Kind, kind_of_mode, plain_name
from torchmar.archive.member_streams import READ_ERRORS
from torchmar.errors import ArchiveError

_MAX_DIRECTORY = 64 << 20  # limit of a zip's directory: that of 100,000 members with long names
_CHUNK = 1 << 20
_LOCAL_HEADER, _END, _END64_LOCATOR = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x07"


@dataclass(frozen=True)
class _Extent:
    """The bytes of a member in the file, from its local header to the end of its content."""

    start: int
    end: int
    name: str


class ZipForm:
    """A zip.

    TorchServe's frontend reads the local entries one after another, but most other programs read the directory: if the
    two differ, the archive has other members for each kind of reader. Therefore all differences are flaws.

    Args:
        path: the file.

    Raises:
        ArchiveError: the file is no zip, or its directory cannot be read.
    """

    name = "zip"

    def __init__(self, path: Path) -> None:
        self.entries: list[Entry] = []
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self.flaws: list[Flaw] = []
        self.frontend_flaws: list[Flaw] = []
        with path.open("rb") as stream:
            try:
                count = _declared_members(stream, path.stat().st_size)
                self._zip = zipfile.ZipFile(path)
            except READ_ERRORS as error:
                raise ArchiveError(
                    f"{path} is not an archive: {error}", hint="an archive is a zip, a .tar.gz or a folder"
                ) from None
            stream.seek(0)
            if stream.read(4) not in (_LOCAL_HEADER, _END):
                cause = "the file does not begin with a member, where TorchServe's frontend begins to read"
                self.frontend_flaws.append(Flaw(Kind.INCONSISTENT, "", cause))
            infos = self._zip.infolist()
            if len(infos) > MAX_MEMBERS:  # reading the members would take longer than sending them
                self.flaws.append(Flaw(Kind.BOMB, "", f"it has more than {MAX_MEMBERS} members"))
                return
            extents = sorted(
                (self._read(stream, info) for info in infos), key=lambda extent: (extent.start, extent.end)
            )
            if len(infos) not in (count, count + (len(infos) & ~0xFFFF)):  # without Zip64, counts are modulo 65,536
                cause = f"the directory has {len(infos)} members, and the end of the file declares {count}"
                self.flaws.append(Flaw(Kind.INCONSISTENT, "", cause))
            self._compare_extents(stream, extents)
        self._infos = {plain_name(info.orig_filename): info for info in infos}

    def open(self, entry: Entry) -> IO[bytes]:
        """Open a member."""
        return self._zip.open(self._infos[entry.name])

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def _read(self, stream: IO[bytes], info: zipfile.ZipInfo) -> _Extent:
        """Add a member to the entries, compare its local header with the directory, and return its bytes' extent."""
        # The whole name, which zipfile cuts off at a NUL: a reader in C would see another name.
        name = info.orig_filename
        mode = info.external_attr >> 16 if info.create_system == 3 else 0
        start, end = self._compare_header(stream, info)
        stored = info.compress_type == zipfile.ZIP_STORED
        if stored and info.compress_size != info.file_size:
            self._inconsistent(name, "is stored, and yet of another size than its content")
        kind = "folder" if name.endswith("/") else kind_of_mode(mode) if mode else "file"
        if kind == "folder" and not name.endswith("/"):
            self._inconsistent(name, "is a folder by its mode, and a file by its name")
        self.entries.append(
            Entry(
                plain_name(name),
                info.file_size,
                kind,
                packed=None if stored else info.compress_size,
                offset=start if stored else None,
                crc=info.CRC,
            )
        )
        return _Extent(info.header_offset, end, plain_name(name))

    def _compare_header(self, stream: IO[bytes], info: zipfile.ZipInfo) -> tuple[int, int]:
        """Compare the local header of a member with the directory, and return where its content starts and ends."""
        name = info.orig_filename
        stream.seek(info.header_offset)
        header = stream.read(30)
        if len(header) < 30 or header[:4] != _LOCAL_HEADER:
            self._inconsistent(name, "has no local header")
            return info.header_offset, info.header_offset
        flags, method, crc, packed, size, name_length, extra_length = struct.unpack("<6xHH4xIIIHH", header)
        raw_name = stream.read(name_length)
        start = info.header_offset + 30 + name_length + extra_length
        if _decoded(raw_name, flags) != name:
            self._inconsistent(name, "is called otherwise in its local header")
        # With bit 3, these values follow the content; with Zip64 they are in the extra field.
        has_sizes = not flags & 8 and 0xFFFFFFFF not in (packed, size)
        if has_sizes and (crc, packed, size) != (info.CRC, info.compress_size, info.file_size):
            self._inconsistent(name, "has another size or checksum in its local header")
        if flags & 1 or info.flag_bits & 1:
            self._inconsistent(name, "is encrypted; TorchServe has no password")
        if method != info.compress_type or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            self._inconsistent(name, "is compressed in a way that TorchServe does not read")
        if flags & 8 and method == zipfile.ZIP_STORED:
            cause = f"the member {name!r} is stored, and its size stands behind it, which Java does not read"
            self.frontend_flaws.append(Flaw(Kind.INCONSISTENT, name, cause))
        return start, start + info.compress_size

    def _compare_extents(self, stream: IO[bytes], extents: list[_Extent]) -> None:
        """Add flaws for members that share bytes, and for local entries that are not in the directory."""
        directory = _Extent(self._zip.start_dir, self._zip.start_dir, "")
        before = _Extent(0, 0, "")
        for extent in (*extents, directory):
            if before.end <= extent.start:
                for name in _local_names(stream, before.end, extent.start):
                    self._inconsistent(name, "is in the file, and the directory does not list it")
            elif extent is directory:
                self._inconsistent(before.name, "reaches into the directory")
            else:
                self._inconsistent(extent.name, f"shares bytes with {before.name!r}")
            if extent.end > before.end:
                before = extent

    def _inconsistent(self, name: str, cause: str) -> None:
        self.flaws.append(Flaw(Kind.INCONSISTENT, name, f"the member {name!r} {cause}"))


def _local_names(stream: IO[bytes], start: int, end: int) -> Iterator[str]:
    """Yield the names of local entries between two offsets of the file, where no members should be."""
    position, overlap = start, len(_LOCAL_HEADER) - 1
    while position < end:
        stream.seek(position)
        chunk = stream.read(min(_CHUNK, end - position))
        index = chunk.find(_LOCAL_HEADER)
        if index < 0:
            position += max(len(chunk) - overlap, 1) if len(chunk) == _CHUNK else end - position
            continue
        stream.seek(position + index)
        flags, name_length = struct.unpack("<6xH18xH2x", stream.read(30).ljust(30, b"\0"))
        yield _decoded(stream.read(max(0, min(name_length, end - stream.tell()))), flags)
        position += index + 30 + name_length


def _decoded(raw_name: bytes, flags: int) -> str:
    """Return a name from a header, decoded by bit 11 of the header's flags."""
    return raw_name.decode("utf-8" if flags & 0x800 else "cp437", "replace")


def _declared_members(stream: IO[bytes], size: int) -> int:
    """Return the number of members in a zip's end record.

    Raises:
        zipfile.BadZipFile: there is no end record, or the directory is too large: zipfile reads all of it
            into memory.
    """
    stream.seek(max(0, size - (1 << 16) - 22 - 20))
    tail = stream.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) - end < 22:
        raise zipfile.BadZipFile("it has no zip directory; it may be truncated" if size else "it is empty")
    count, directory = struct.unpack_from("<HI", tail, end + 10)
    if (directory == 0xFFFFFFFF or count == 0xFFFF) and tail[max(0, end - 20) :].startswith(_END64_LOCATOR):
        (position,) = struct.unpack_from("<Q", tail, end - 20 + 8)
        stream.seek(min(position, size))
        record = stream.read(56)
        if len(record) == 56:
            count, directory = struct.unpack_from("<QQ", record, 32)
    if directory > _MAX_DIRECTORY:
        raise zipfile.BadZipFile(f"its directory has {directory} bytes")
    return int(count)
