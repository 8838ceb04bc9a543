"""torchmar.archive.read opens archives of every origin and never writes outside its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from torchmar.archive import Archive, digests, pack, pack_folder, store
from torchmar.errors import ArchiveError, TorchmarError

MANIFEST = json.dumps({"model": {"modelName": "m", "handler": "h.py", "modelVersion": "2.0"}})


def write_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members:
            archive.writestr(name, text)
    return path


@pytest.mark.process
def test_an_archive_of_torch_model_archiver_opens_here(tmp_path: Path) -> None:
    (tmp_path / "h.py").write_text("def handle(rows, context): ...")
    (tmp_path / "model.pt").write_bytes(b"weights" * 1000)
    archiver = [sys.executable, "-m", "model_archiver.model_packaging"]
    options = "--model-name m --version 2.0 --handler h.py --serialized-file model.pt --export-path ."
    subprocess.run([*archiver, *options.split()], cwd=tmp_path, check=True)
    with Archive(tmp_path / "m.mar") as archive:
        assert (archive.manifest.name, archive.manifest.version) == ("m", "2.0")
        assert archive.read("model.pt") == b"weights" * 1000
        archive.extract(tmp_path / "out")
        assert archive.mismatched() == []
        assert len(archive.digest) == 64
    assert (tmp_path / "out" / "h.py").read_text() == "def handle(rows, context): ..."


def test_the_digest_is_of_the_content_whoever_packed_it(tmp_path: Path) -> None:
    ours = pack({"MAR-INF/MANIFEST.json": MANIFEST.encode(), "h.py": b"x"}, tmp_path / "ours.mar")
    theirs = write_zip(tmp_path / "theirs.mar", ("h.py", "x"), ("MAR-INF/MANIFEST.json", MANIFEST))
    with Archive(theirs) as archive:
        assert archive.digest == ours.digest


def test_bytecode_that_a_server_left_in_a_folder_is_not_of_the_archive(tmp_path: Path) -> None:
    packed = pack_folder({"MAR-INF/MANIFEST.json": MANIFEST.encode(), "h.py": b"x", "p/m.py": b""}, tmp_path / "m")
    for cache in (tmp_path / "m" / "__pycache__", tmp_path / "m" / "p" / "__pycache__"):
        cache.mkdir()
        (cache / "h.cpython-311.pyc").write_bytes(b"of another run")
        (cache / "h.cpython-311.pyc.140223").write_bytes(b"")  # while it is written
    with Archive(tmp_path / "m") as archive:
        assert archive.mismatched() == [] and archive.digest == packed.digest
        assert sorted(archive.sizes) == ["MAR-INF/MANIFEST.json", "MAR-INF/SHA256SUMS", "h.py", "p/m.py"]
    (tmp_path / "m" / "h.pyc").write_bytes(b"Python would run it")
    with Archive(tmp_path / "m") as archive:
        assert archive.mismatched() == ["h.pyc"]
    # What the list has is of the archive, wherever it lies.
    pack_folder({"MAR-INF/MANIFEST.json": MANIFEST.encode(), "__pycache__/h.pyc": b"y"}, tmp_path / "listed")
    with Archive(tmp_path / "listed") as archive:
        assert "__pycache__/h.pyc" in archive and archive.mismatched() == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..\\x", "MAR-INF/../../x"])
def test_a_member_that_would_leave_the_folder_is_rejected(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "bad.mar", (name, "x"))
    with pytest.raises(ArchiveError, match="outside of its folder"):
        Archive(path)


def test_a_symbolic_link_is_rejected(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with pytest.raises(ArchiveError, match="a symbolic or hard link"):
        Archive(write_zip(tmp_path / "bad.mar", (link, "/etc/passwd")))


def test_files_that_are_no_archives_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty.mar").touch()
    (tmp_path / "text.mar").write_text("hello")
    os.mkfifo(tmp_path / "pipe.mar")  # without a writer
    for path, message in {
        tmp_path / "gone.mar": "does not exist",
        tmp_path / "pipe.mar": "neither a file nor a folder",
        tmp_path: "is a folder",
        tmp_path / "empty.mar": "is not an archive",
        tmp_path / "text.mar": "is not an archive",
    }.items():
        with pytest.raises(ArchiveError, match=message):
            Archive(path)


def test_a_zip_without_a_manifest_is_no_model_archive(tmp_path: Path) -> None:
    with Archive(write_zip(tmp_path / "a.mar", ("x", "y"))) as archive, pytest.raises(ArchiveError, match="no MAR-INF"):
        _ = archive.manifest


def test_changed_missing_and_unlisted_members_are_found(tmp_path: Path) -> None:
    sums = digests.show({"same": "0" * 64, "gone": "1" * 64})
    path = write_zip(tmp_path / "a.mar", ("same", "x"), ("new", "y"), (digests.PATH, sums.decode()))
    with Archive(path) as archive:
        assert archive.mismatched() == ["gone", "new", "same"]


def test_damaged_bytes_are_an_error_and_nothing_is_left(tmp_path: Path) -> None:
    path = pack({"a": b"first", "w": b"weights" * 100}, tmp_path / "a.mar").path
    data = bytearray(path.read_bytes())
    data[data.index(b"weights")] ^= 1
    path.write_bytes(data)
    with Archive(path) as archive:
        with pytest.raises(ArchiveError, match="w is damaged"):
            archive.read("w")
        with pytest.raises(ArchiveError, match="w is damaged"):
            archive.extract(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_extraction_needs_an_empty_folder(tmp_path: Path) -> None:
    path = pack({"a": b"1"}, tmp_path / "a.mar").path
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with Archive(path) as archive:
        with pytest.raises(ArchiveError, match="exists already"):
            archive.extract(tmp_path / "out")
        (tmp_path / "out" / "mine").unlink()
        archive.extract(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"1"


def test_names_that_sha256sum_escapes_survive_the_list() -> None:
    names = {"plain": "0" * 64, "back\\slash": "1" * 64, "new\nline": "2" * 64}
    assert digests.parse(digests.show(names)) == names


def test_a_store_lists_versions_from_old_to_new(tmp_path: Path) -> None:
    for version in ("1.10", "1.9", "2.0", "2.0rc1", "1.9.1"):
        manifest = MANIFEST.replace("2.0", version).encode()
        pack({"MAR-INF/MANIFEST.json": manifest}, tmp_path / f"m-{version}.mar")
    (tmp_path / "broken.mar").write_text("x")
    stems = [path.stem for path in store.find(tmp_path, ["m"])]
    assert stems == ["m-1.9", "m-1.9.1", "m-1.10", "m-2.0rc1", "m-2.0"]
    assert tmp_path / "broken.mar" in store.find(tmp_path)
    with pytest.raises(TorchmarError, match="no archive of a model 'x'"):
        store.find(tmp_path, ["x"])


def test_a_store_has_the_archives_that_torchserve_loads_and_no_others(tmp_path: Path) -> None:
    members = {"MAR-INF/MANIFEST.json": MANIFEST.encode()}
    for name in ("a.mar", "b.model", ".hidden.mar", "c.zip"):
        pack(members, tmp_path / name)
    for name in ("folder", "outer/inner", "two/one"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pack_folder(members, tmp_path / name)
    (tmp_path / "two" / "other").mkdir()
    (tmp_path / "empty").mkdir()
    assert {path.name for path in store.find(tmp_path, ["m"])} == {"a.mar", "b.model", "folder", "outer"}
    with Archive(tmp_path / "outer") as archive:
        assert archive.manifest.name == "m"
