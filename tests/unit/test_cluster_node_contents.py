"""torchmar.cluster.node_contents: contents are copied to a node once, compared, and removed with their last user."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from torchmar.cluster import node_contents
from torchmar.cluster.node_contents import PackedContent, fetch, pack
from torchmar.errors import ArchiveError

ELSEWHERE = "/on/another/machine"  # so that bytes are read from there


@pytest.fixture
def packed(tmp_path: Path) -> PackedContent:
    folder, packages = tmp_path / "archive", tmp_path / "packages"
    for path in (folder / "sub" / "weights", packages / "module.py"):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100))
    return pack(folder, packages, tmp_path / "packed.tar")


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for name, mode in (("a", 0o600), ("b", 0o644)):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("x", "y") if name == "a" else ("y", "x"):
            (folder / file).write_bytes(file.encode())
            (folder / file).chmod(mode)
            os.utime(folder / file, (mode, mode))
        digests.add(pack(folder, None, tmp_path / f"{name}.tar").digest)
    assert len(digests) == 1
    (folder / "x").write_bytes(b"z")
    assert pack(folder, None, tmp_path / "c.tar").digest not in digests


def reading(packed: PackedContent, offsets: list[int]) -> Callable[[int], bytes]:
    def read(offset: int) -> bytes:
        offsets.append(offset)
        return node_contents.read_at(Path(packed.path), offset)

    return read


def test_a_content_is_copied_once_for_all_users_and_removed_with_the_last(
    tmp_path: Path, packed: PackedContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_contents, "CHUNK", 4096)
    offsets: list[int] = []
    elsewhere = replace(packed, path=ELSEWHERE)
    first = fetch(elsewhere, reading(packed, offsets), tmp_path / "node")
    second = fetch(elsewhere, reading(packed, offsets), tmp_path / "node")
    assert offsets == list(range(0, packed.size, 4096))
    assert first.folder == second.folder
    assert (Path(first.folder) / "sub" / "weights").read_bytes() == bytes(100)
    assert (Path(first.packages) / "module.py").is_file()
    first.close()
    assert Path(second.folder).is_dir()
    second.close()
    assert not list((tmp_path / "node").iterdir())


def test_a_file_that_this_node_can_read_is_not_sent(tmp_path: Path, packed: PackedContent) -> None:
    offsets: list[int] = []
    fetch(packed, reading(packed, offsets), tmp_path / "node").close()
    assert not offsets


@pytest.mark.parametrize(
    ("read", "message"), [(lambda offset: b"", "ends after 0 of"), (lambda offset: bytes(1 << 20), "arrived with")]
)
def test_other_bytes_are_not_extracted(
    tmp_path: Path, packed: PackedContent, read: Callable[[int], bytes], message: str
) -> None:
    with pytest.raises(ArchiveError, match=message):
        fetch(replace(packed, path=ELSEWHERE), read, tmp_path / "node")
    assert [path.name for path in (tmp_path / "node").iterdir()] == [f"{packed.digest}.lock"]
    fetch(packed, read, tmp_path / "node").close()


def test_a_content_whose_files_have_changed_is_copied_again_beside_the_one_that_is_used(
    tmp_path: Path, packed: PackedContent
) -> None:
    node = tmp_path / "node"
    used = fetch(packed, lambda offset: b"", node)
    weights = Path(used.folder) / "sub" / "weights"
    (weights.parent / "cache").write_text("of the handler")
    same = fetch(packed, lambda offset: b"", node)
    assert same.folder == used.folder
    same.close()
    weights.write_bytes(b"damaged")
    other = fetch(packed, lambda offset: b"", node)
    assert other.folder != used.folder
    assert (Path(other.folder) / "sub" / "weights").read_bytes() == bytes(100)
    third = fetch(packed, lambda offset: b"", node)
    assert third.folder == other.folder
    for each in (used, other, third):
        each.close()
    assert not list(node.iterdir())


def test_contents_that_killed_replicas_have_left_are_removed_by_the_next_one(
    tmp_path: Path, packed: PackedContent
) -> None:
    node, other = tmp_path / "node", tmp_path / "other"
    (other / "sub").mkdir(parents=True)
    another = pack(other, None, tmp_path / "another.tar")
    killed = fetch(packed, lambda offset: b"", node)
    os.close(killed._descriptor)  # as the kernel does
    content = fetch(another, lambda offset: b"", node)
    assert sorted(path.name for path in node.iterdir()) == [another.digest, f"{another.digest}.lock"]
    content.close()
    # Its own is used again.
    killed = fetch(packed, lambda offset: b"", node)
    os.close(killed._descriptor)
    offsets: list[int] = []
    fetch(replace(packed, path=ELSEWHERE), reading(packed, offsets), node).close()
    assert not offsets


def test_a_content_without_room_is_an_error_with_numbers(
    tmp_path: Path, packed: PackedContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(5000))
    with pytest.raises(ArchiveError, match=r"has 5.0 kB free, and a content needs \d+.\d kB"):
        fetch(packed, lambda offset: b"", tmp_path / "node")


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path, packed: PackedContent) -> None:
    node = tmp_path / "node"
    node.mkdir()
    node.chmod(0o777)
    with pytest.raises(ArchiveError, match="is not a folder of this user alone"):
        fetch(packed, lambda offset: b"", node)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ArchiveError, match="is not a folder of this user alone"):
        fetch(packed, lambda offset: b"", tmp_path / "link")
