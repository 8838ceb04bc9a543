"""torchmar.archive.zip_form lists the members in the file, or raises an error."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest

from torchmar import checks
from torchmar.archive import Archive
from torchmar.errors import ArchiveError

FILES = {"MAR-INF/MANIFEST.json": b"{}", "a.txt": b"aaaa", "b.txt": b"b" * 50, "c.txt": b""}


def zipped(method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return stream.getvalue()


def names_in(path: Path) -> list[str]:
    with Archive(path) as archive:
        return sorted(member.name for member in archive.members)


def test_no_damaged_byte_of_the_directory_hides_a_member(tmp_path: Path) -> None:
    data = zipped()
    path = tmp_path / "m.mar"
    opened = 0
    for position in range(data.index(b"PK\x01\x02"), len(data)):
        for mask in (0x01, 0x40, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= mask
            path.write_bytes(damaged)
            try:
                names = names_in(path)
            except ArchiveError:
                continue
            opened += 1
            assert names == sorted(FILES), (position, mask)
    assert opened  # versions and times of the directory decide nothing


def test_an_entry_that_hides_the_others_is_rejected(tmp_path: Path) -> None:
    data = bytearray(zipped())
    data[data.index(b"PK\x01\x02") + 33] = 1  # its comment has 256 bytes more
    (tmp_path / "m.mar").write_bytes(data)
    with pytest.raises(ArchiveError, match="the directory has 1 members, and the end of the file declares 4"):
        Archive(tmp_path / "m.mar")


@pytest.mark.parametrize("left_out", range(len(FILES)))
def test_a_member_that_the_directory_leaves_out_is_named(tmp_path: Path, left_out: int) -> None:
    data = zipped()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entries = [b"PK\x01\x02" + entry for entry in data[start:end].split(b"PK\x01\x02")[1:]]
    del entries[left_out]
    directory = b"".join(entries)
    record = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, len(entries), len(entries), len(directory), start, 0)
    (tmp_path / "m.mar").write_bytes(data[:start] + directory + record)
    name = list(FILES)[left_out]
    findings = [finding for finding in checks.check(tmp_path / "m.mar") if finding.code.name == "MAR107"]
    assert [(finding.place, finding.cause) for finding in findings] == [
        (name, f"the member {name!r} is in the file, and the directory does not list it")
    ]


def test_a_zip_in_a_zip_is_one_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.mar", "w") as archive:
        archive.writestr("inner.zip", zipped())
    assert names_in(tmp_path / "m.mar") == ["inner.zip"]


def test_sizes_behind_the_content_are_no_lost_member(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise OSError("a pipe")

        def tell(self) -> int:
            raise OSError("a pipe")

    stream = Pipe()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    (tmp_path / "m.mar").write_bytes(stream.getvalue())
    assert names_in(tmp_path / "m.mar") == sorted(FILES)
