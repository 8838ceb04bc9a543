"""torchmar.cluster.node_archives: contents are copied to a node once, compared, and removed with their last user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from torchmar.cluster import node_archives
from torchmar.cluster.node_archives import PackedContent, fetch, pack
from torchmar.errors import ArchiveError


@pytest.fixture
def packed(tmp_path: Path) -> PackedContent:
    folder, packages = tmp_path / "archive", tmp_path / "packages"
    for path in (folder / "sub" / "weights", packages / "module.py"):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100))
    return pack(folder, packages, tmp_path / "packed.tar")


def reading(packed: PackedContent, offsets: list[int]) -> Callable[[int], bytes]:
    def read(offset: int) -> bytes:
        offsets.append(offset)
        return node_archives.read_at(Path(packed.path), offset)

    return read


def test_a_content_is_copied_once_for_all_users_and_removed_with_the_last(
    tmp_path: Path, packed: PackedContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_archives, "CHUNK", 4096)
    offsets: list[int] = []
    elsewhere = replace(packed, path="/on/another/machine")  # so that its bytes are read from there
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
        fetch(replace(packed, path="/on/another/machine"), read, tmp_path / "node")
    assert [path.name for path in (tmp_path / "node").iterdir()] == [f"{packed.digest}.lock"]
    fetch(packed, read, tmp_path / "node").close()
