"""Writing a zip of stored members whose sizes are known in advance.

The standard library's writer computes checksums in the thread that writes, and puts content
directly after the header. Here the caller copies content and computes checksums,
and content starts where a reader can map it. Format: PKWARE's APPNOTE 6.3.10, with Zip64 if a
size, an offset or the number of members needs it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

_STORED = 0
_UTF8 = 1 << 11
_UNIX = 3 << 8
_MODE = 0o100644 << 16
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF
# Padding in a local header's extra field, with the field number that Android's zipalign uses.
_PADDING = 0xD935
_ZIP64 = 0x0001


@dataclass
class _Member:
    name: bytes
    size: int
    header: int
    crc: int = 0

    @property
    def flags(self) -> int:
        return 0 if self.name.isascii() else _UTF8


class ZipWriter:
    """A zip that is written sequentially to a file descriptor.

    Args:
        descriptor: an empty file, open for writing.
        date_time: the time of every member: year (from 1980), month, day, hour, minute, second.
    """

    def __init__(self, descriptor: int, date_time: tuple[int, int, int, int, int, int]) -> None:
        self._descriptor = descriptor
        year, month, day, hour, minute, second = date_time
        self._date = (year - 1980) << 9 | month << 5 | day
        self._time = hour << 11 | minute << 5 | second // 2
        self._position = 0
        self._members: list[_Member] = []

    def begin(self, name: str, size: int, alignment: int = 1) -> int:
        """Start a member of ``size`` bytes; return the offset for its content."""
        member = _Member(name.encode(), size, self._position)
        self._members.append(member)
        plain = len(self._local_header(member, 0)) + self._position
        # The padding's field header has six bytes, so that one more unit may be needed.
        padding = -(plain + 6) % alignment if plain % alignment else -6
        header = self._local_header(member, padding + 6, alignment)
        self._write(header)
        self._position += size
        return self._position - size

    def end(self, crc: int) -> None:
        """Record the checksum of the member that was started last."""
        member = self._members[-1]
        member.crc = crc
        os.pwrite(self._descriptor, struct.pack("<I", crc), member.header + 14)

    def close(self) -> int:
        """Write the directory; return the size of the whole file."""
        start = self._position
        for member in self._members:
            self._write(self._directory_entry(member))
        size, count = self._position - start, len(self._members)
        if size >= _MAX32 or start >= _MAX32 or count >= _MAX16:
            end64 = self._position
            self._write(struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, _UNIX | 45, 45, 0, 0, count, count, size, start))
            self._write(struct.pack("<IIQI", 0x07064B50, 0, end64, 1))
        counts = min(count, _MAX16)
        self._write(
            struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, counts, counts, min(size, _MAX32), min(start, _MAX32), 0)
        )
        return self._position

    def _local_header(self, member: _Member, padding: int, alignment: int = 1) -> bytes:
        extra, size, version = b"", member.size, 10
        if size >= _MAX32:
            extra, size, version = struct.pack("<HHQQ", _ZIP64, 16, size, size), _MAX32, 45
        if padding:
            extra += struct.pack("<HHH", _PADDING, padding - 4, alignment) + bytes(padding - 6)
        fixed = (0x04034B50, version, member.flags, _STORED, self._time, self._date, 0, size, size)
        return struct.pack("<IHHHHHIIIHH", *fixed, len(member.name), len(extra)) + member.name + extra

    def _directory_entry(self, member: _Member) -> bytes:
        size, header, version, wide = member.size, member.header, 10, b""
        if size >= _MAX32:
            wide, size = struct.pack("<QQ", size, size), _MAX32
        if header >= _MAX32:
            wide, header = wide + struct.pack("<Q", header), _MAX32
        if wide:
            wide, version = struct.pack("<HH", _ZIP64, len(wide)) + wide, 45
        fixed = (0x02014B50, _UNIX | version, version, member.flags, _STORED, self._time, self._date, member.crc)
        rest = (size, size, len(member.name), len(wide), 0, 0, 0, _MODE, header)
        return struct.pack("<IHHHHHHIIIHHHHHII", *fixed, *rest) + member.name + wide

    def _write(self, data: bytes) -> None:
        os.pwrite(self._descriptor, data, self._position)
        self._position += len(data)
