"""torchmar.archive.pack writes the same bytes for the same content, as a whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import DIGITS
from torchmar import archive
from torchmar.archive import Archive, digests, pack
from torchmar.errors import ArchiveError


@pytest.mark.usefixtures("weights")
def test_two_builds_in_two_folders_at_two_times_are_byte_identical(tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(DIGITS, tmp_path / name / "digits", copy_function=shutil.copy)
        for file in (tmp_path / name).rglob("*"):
            os.utime(file, (1_000_000_000, 1_000_000_000) if name == "one" else None)
            file.chmod(0o755 if name == "one" else 0o700)
    first, second = (archive.build(tmp_path / name / "digits", tmp_path / name) for name in ("one", "two"))
    assert first.digest == second.digest
    assert first.path.read_bytes() == second.path.read_bytes()


def test_members_are_stored_sorted_with_one_time_and_mode(digits: Path) -> None:
    infos = zipfile.ZipFile(digits).infolist()
    names = [info.filename for info in infos]
    # The digest list is made of all others and comes last.
    assert names == [*sorted(names[:-1]), digests.PATH]
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.external_attr >> 16 for info in infos} == {0o100644}


def test_source_date_epoch_is_the_time_of_every_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    packed = pack({"a": b"x"}, tmp_path / "a.mar")
    assert {info.date_time for info in zipfile.ZipFile(packed.path).infolist()} == {(2023, 11, 14, 22, 13, 20)}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ArchiveError, match="SOURCE_DATE_EPOCH=yesterday"):
        pack({"a": b"x"}, tmp_path / "a.mar")


def test_unzip_and_sha256sum_agree_with_the_digest_list(digits: Path, tmp_path: Path) -> None:
    if not (shutil.which("unzip") and shutil.which("sha256sum")):
        pytest.skip("needs unzip and sha256sum")
    subprocess.run(["unzip", "-q", digits, "-d", tmp_path / "out"], check=True)
    checked = subprocess.run(
        ["sha256sum", "-c", digests.PATH], cwd=tmp_path / "out", check=True, capture_output=True, text=True
    )
    assert checked.stdout.count(": OK") == len(zipfile.ZipFile(digits).infolist()) - 1
    sums = (tmp_path / "out" / digests.PATH).read_bytes()
    with Archive(digits) as opened:
        assert opened.digest == hashlib.sha256(sums).hexdigest()


def test_the_tree_and_the_bytes_are_preserved(tmp_path: Path) -> None:
    big = os.urandom(5_000_001)  # more than one chunk, and not a multiple of it
    (tmp_path / "big").write_bytes(big)
    members = {"a/x.txt": b"1", "b/x.txt": b"2", "b/c/\u00e4 n.txt": b"", "weights.pt": tmp_path / "big"}
    packed = pack(members, tmp_path / "new" / "a.mar")
    with Archive(packed.path) as opened:
        assert {member.name for member in opened.members} == {*members, digests.PATH}
        assert opened.read("weights.pt") == big
        assert opened.read("b/x.txt") == b"2"
        assert opened.mismatched() == []
    assert (packed.size, packed.members) == (packed.path.stat().st_size, 5)


def test_a_failure_leaves_only_the_old_archive(tmp_path: Path) -> None:
    target = tmp_path / "a.mar"
    pack({"a": b"old"}, target)
    before = target.read_bytes()
    with pytest.raises(ArchiveError, match="gone"):
        pack({"a": b"new", "b": tmp_path / "gone"}, target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_an_unwritable_store_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match="cannot be written"):
        pack({"a": b""}, tmp_path / "file" / "a.mar")
