"""Any tree is packed and read back unchanged, in every form; derived and imported archives keep it too."""

from __future__ import annotations

import json
import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from torchmar import archive
from torchmar.archive import Archive, build_cache, copying, derive, digests, import_archive, pack, pack_folder, pack_tgz
from torchmar.archive.copying import CHUNK, ArchiveSlice
from torchmar.archive.layout import Entry, flaws
from torchmar.archive.zip import ZipWriter
from torchmar.errors import ArchiveError, RecipeError

MANIFEST = json.dumps({"model": {"modelName": "m", "handler": "h.py", "modelVersion": "1.0"}}).encode()

part = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\\0:", exclude_categories=["Cc"]), min_size=1, max_size=12
)
names = st.lists(part.filter(lambda name: name not in (".", "..")), min_size=1, max_size=4).map("/".join)
trees = st.dictionaries(names, st.binary(max_size=300) | st.just(bytes(70_000)), max_size=8)


def possible(tree: dict[str, bytes]) -> bool:
    """Return whether a tree has no flaw of its own (a file that is a folder, names that differ only in case)."""
    return not list(flaws(Entry(name, len(content)) for name, content in tree.items()))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@example({"..a/b": b"not a revision of a mount"})
@given(trees)
def test_a_random_tree_is_read_back_from_every_form_with_one_digest(tree: dict[str, bytes]) -> None:
    members = {**tree, "MAR-INF/MANIFEST.json": MANIFEST}
    assume(possible(members) and digests.PATH not in tree)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        packed = [
            pack(members, folder / "a.mar"),
            pack_folder(members, folder / "a"),
            pack_tgz(members, folder / "a.tar.gz", "m"),
        ]
        for form in packed:
            with Archive(form.path) as opened:
                assert {member.name: opened.read(member.name) for member in opened.members} == {
                    **members,
                    digests.PATH: digests.show(opened.listed),
                }
                assert opened.mismatched() == []
        assert len({form.digest for form in packed}) == 1
        with zipfile.ZipFile(folder / "a.mar") as stock:
            assert stock.testzip() is None


@settings(deadline=None)
@given(st.data())
def test_a_damaged_archive_is_an_error_or_a_mismatch_or_has_the_same_content(
    data: st.DataObject,
) -> None:
    members = {"MAR-INF/MANIFEST.json": MANIFEST, "h.py": b"def handle(rows, context): ...", "w": bytes(range(256)) * 4}
    with tempfile.TemporaryDirectory() as temporary:
        path = pack(members, Path(temporary) / "a.mar").path
        with Archive(path) as whole:
            original = {member.name: whole.read(member.name) for member in whole.members}
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
        try:
            with Archive(path) as opened:
                read = {member.name: opened.read(member.name) for member in opened.members}
                mismatched = opened.mismatched()
                opened.extract(Path(temporary) / "out")
            assert read == original or mismatched
            files = (file for file in (Path(temporary) / "out").rglob("*") if file.is_file())
            assert {file.relative_to(Path(temporary) / "out").as_posix(): file.read_bytes() for file in files} == read
        except ArchiveError:
            assert not (Path(temporary) / "out").exists()


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 65_535, 65_536, CHUNK, 9 << 20, (9 << 20) + 1])
def test_content_of_any_size_is_whole_and_large_content_starts_on_a_page(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "w").write_bytes(data)
    seen: list[int] = []
    packed = pack({"a": b"first", "w": tmp_path / "w", "z": b"last"}, tmp_path / "a.mar", seen.append)
    with zipfile.ZipFile(packed.path) as stock:
        assert stock.read("w") == data
        assert stock.testzip() is None
    with Archive(packed.path) as opened:
        source = opened.source("w", tmp_path)
        assert isinstance(source, ArchiveSlice)
        assert source.offset % 4096 == 0 or size < 65_536
        assert packed.path.read_bytes()[source.offset : source.offset + size] == data
        assert opened.mismatched() == []
    assert sum(seen) == size + len(b"firstlast") + len(digests.show(opened.listed))


def test_an_archive_of_more_than_4_gb_is_read_by_everybody(tmp_path: Path) -> None:
    size, last = (4 << 30) + 12345, os.urandom(9 << 20)
    members: dict[str, bytes | Path] = {"MAR-INF/MANIFEST.json": MANIFEST, "a": b"1", "w": b"end", "z": tmp_path / "z"}
    (tmp_path / "z").write_bytes(last)
    sums: dict[str, str] = {}
    with open(tmp_path / "a.mar", "xb") as stream:
        writer = ZipWriter(stream.fileno(), (1980, 1, 1, 0, 0, 0))
        for name, content in members.items():
            count = copying.size_of(content)
            # The content of w is zeros up to its end: a hole, which takes no time and no disk.
            hole = size - count if name == "w" else 0
            offset = writer.begin(name, hole + count, 4096)
            copied = copying.copy(content, count, stream.fileno(), offset + hole, lambda count: None)
            writer.end(copied.crc)
            sums[name] = copied.sha256
        text = digests.show(sums)
        copying.copy(text, len(text), stream.fileno(), writer.begin(digests.PATH, len(text)), lambda count: None)
        writer.end(zlib.crc32(text))
        total = writer.close()
    assert (tmp_path / "a.mar").stat().st_size == total > size + len(last)
    with zipfile.ZipFile(tmp_path / "a.mar") as stock:
        assert stock.getinfo("w").file_size == size
        assert stock.getinfo("z").header_offset > 1 << 32
        assert stock.read("z") == last
    with Archive(tmp_path / "a.mar") as opened:
        assert opened.sizes["w"] == size
        with opened.open("w") as content:
            content.seek(size - 3)
            assert content.read() == b"end"
        later = opened.source("z", tmp_path)
        assert isinstance(later, ArchiveSlice)
        packed = pack({"MAR-INF/MANIFEST.json": MANIFEST, "z": later}, tmp_path / "b.mar")
    with Archive(packed.path) as opened:
        assert opened.read("z") == last
        assert opened.mismatched() == []


def test_a_file_that_changes_while_it_is_packed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(32 << 20))

    def grow(count: int) -> None:
        with open(tmp_path / "w", "ab") as stream:
            stream.write(b"more")

    with pytest.raises(ArchiveError, match="was changed while it was packed"):
        pack({"w": tmp_path / "w"}, tmp_path / "a.mar", grow)
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    target = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left"):
            copying.copy(b"x", 1, target, 0, lambda count: None)
    finally:
        os.close(target)


# ------------------------------------------------------------------------------------------------ derive


def test_deriving_changes_only_the_given_values(make: Callable[..., Path], tmp_path: Path) -> None:
    source = make(disk={"w.pt": os.urandom(100_000)}, weights="w.pt", config={"batchSize": 2, "maxBatchDelay": 5})
    (tmp_path / "other.py").write_text(
        "from torchmar_handlers.base import BaseHandler\nclass Other(BaseHandler): ...\n"
    )
    packed = derive(
        source,
        tmp_path / "new",
        version="1.0+b16",
        config={"batchSize": 16, "maxBatchDelay": None, "handler": {"topk": 1}},
        handler=tmp_path / "other.py",
    )
    with Archive(source) as old, Archive(packed.path) as new:
        assert (new.manifest.version, new.manifest.model.handler) == ("1.0+b16", "other.py")
        assert new.config == {"batchSize": 16, "handler": {"topk": 1}}
        assert new.read("w.pt") == old.read("w.pt")
        assert new.listed["w.pt"] == old.listed["w.pt"]
        assert "handler.py" not in new
        assert "torchmar_handlers/base.py" in new
        assert new.mismatched() == []
    assert packed.path.name == "made-1.0+b16.mar"


def test_deriving_from_every_form_gives_the_same_archive(make: Callable[..., Path], tmp_path: Path) -> None:
    source = make(disk={"w.pt": os.urandom(100_000)}, weights="w.pt")
    with Archive(source) as opened:
        members = {name: opened.read(name) for name in opened.sizes if name != digests.PATH}
    with zipfile.ZipFile(tmp_path / "deflated.mar", "w", zipfile.ZIP_DEFLATED) as stock:
        for name, content in members.items():
            stock.writestr(name, content)
    pack_folder(members, tmp_path / "folder")
    pack_tgz(members, tmp_path / "a.tar.gz", "made")
    sources = (source, tmp_path / "deflated.mar", tmp_path / "folder", tmp_path / "a.tar.gz")
    derived = [derive(form, tmp_path / f"new{number}", version="2").path for number, form in enumerate(sources)]
    assert len({path.read_bytes() for path in derived}) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"version": "1.0"}, "is version 1.0 already"),
        ({"version": "a/b"}, "cannot stand in a URL"),
        ({"version": "2", "config": {"batch_size": 3}}, "did you mean 'batchSize'"),
        ({"version": "2", "config": {"batchSize": 0}}, "batchSize: 0: input should be greater than 0"),
        ({"version": "2", "config": {"minWorkers": 1}}, "set both minWorkers and maxWorkers"),
        ({"version": "2", "config_file": Path("nowhere.yaml")}, "nowhere.yaml cannot be read"),
        ({"version": "2", "handler": Path("nowhere.py")}, "nowhere.py"),
    ],
)
def test_deriving_rejects_values_that_would_not_work(
    make: Callable[..., Path], tmp_path: Path, keys: dict[str, object], message: str
) -> None:
    source = make()
    with pytest.raises(ArchiveError, match=message):
        derive(source, tmp_path / "new", **keys)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


# ------------------------------------------------------------------------------------------------ import


def test_an_imported_archive_builds_the_same_archive_again(
    digits: Path, make: Callable[..., Path], tmp_path: Path
) -> None:
    files = {
        "w/model.pt": "w",
        "net.py": "",
        "req.txt": "a==1",
        "d/x.txt": "x",
        "names.json": '["a"]',
        "s/in.json": "1",
    }
    rich = make(
        "import torchmar_handlers.base\ndef answer(rows, context): ...",
        handler="handler.py:answer",
        disk=files,
        weights="w/model.pt",
        model_file="net.py",
        requirements="req.txt",
        labels="names.json",
        files={"deep/er": "d"},
        config={"batchSize": 4, "mine": {"a": 1}},
        samples=[{"input": "s/in.json", "expect": 1}, {"json": [1], "explain": True}],
        description="Rich.",
    )
    for number, source in enumerate((digits, rich, make())):
        folder, lost = import_archive(source, tmp_path / f"in{number}")
        assert lost == []
        again = archive.build(folder, tmp_path / f"out{number}")
        assert again.path.read_bytes() == source.read_bytes()


def test_importing_never_overwrites_and_leaves_nothing_when_it_fails(make: Callable[..., Path], tmp_path: Path) -> None:
    source = make()
    import_archive(source, tmp_path / "in")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArchiveError, match="exists already"):
        import_archive(source, tmp_path / "in")
    members = {"MAR-INF/MANIFEST.json": MANIFEST.replace(b"1.0", b"1 0"), "h.py": b""}
    pack(members, tmp_path / "bad.mar")
    with pytest.raises(RecipeError, match="cannot stand in a URL"):
        import_archive(tmp_path / "bad.mar", tmp_path / "other")
    (tmp_path / "bad.mar").unlink()
    (tmp_path / "other").rmdir()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("samples", [b'{"a": 1}', b"[1]", b"7", b"[", b'[{"input": "../x"}]', b"[" * 100_000])
def test_invalid_samples_are_an_error_and_leave_no_files(tmp_path: Path, samples: bytes) -> None:
    members = {"MAR-INF/MANIFEST.json": MANIFEST, "h.py": b"", "MAR-INF/SAMPLES.json": samples}
    pack(members, tmp_path / "a.mar")
    with pytest.raises(ArchiveError, match="SAMPLES"):
        import_archive(tmp_path / "a.mar", tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


def test_importing_reports_values_that_a_recipe_lacks(tmp_path: Path) -> None:
    manifest = json.loads(MANIFEST)
    manifest["runtime"], manifest["model"]["envelope"], manifest["model"]["mine"] = "LSP", "kserve", 7
    pack({"MAR-INF/MANIFEST.json": json.dumps(manifest).encode(), "h.py": b""}, tmp_path / "a.mar")
    _, lost = import_archive(tmp_path / "a.mar", tmp_path / "in")
    assert lost == ["mine: 7", "runtime: LSP", "envelope: kserve"]


# --------------------------------------------------------------------------------------------- unchanged


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, Path]:
    """Return a recipe with inputs that are old enough for their times to be trusted, and a store."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "archive.yaml").write_text(
        'name: m\nversion: "1.0"\nhandler: h.py\nweights: w.pt\nlabels: l.json\nfiles: {d: d}\n'
    )
    (folder / "h.py").write_text("def handle(rows, context): ...\n")
    (folder / "w.pt").write_bytes(b"weights")
    (folder / "l.json").write_text('["a"]')
    (folder / "d" / "sub").mkdir(parents=True)
    (folder / "d" / "sub" / "x").write_text("x")
    _age()
    return folder, tmp_path / "store"


def _age() -> None:
    import time

    time.sleep(0.06)  # a file younger than the clock's resolution is not believed


@pytest.mark.parametrize("form", ["mar", "folder"])
def test_an_unchanged_build_reads_nothing_again(built: tuple[Path, Path], form: str) -> None:
    folder, store = built
    first = archive.build(folder, store, form=form)
    again = archive.build(folder, store, form=form)
    assert (first.unchanged, again.unchanged) == (False, True)
    assert (again.path, again.digest, again.size, again.members) == (
        first.path,
        first.digest,
        first.size,
        first.members,
    )
    assert not archive.build(folder, store, form=form, force=True).unchanged


def _restore_times(file: Path, change: Callable[[], object]) -> None:
    status = file.stat()
    change()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "the recipe": lambda folder: (folder / "archive.yaml").write_text(
        (folder / "archive.yaml").read_text() + "description: x\n"
    ),
    "the weights": lambda folder: (folder / "w.pt").write_bytes(b"other"),
    "the weights, with their size and time put back": lambda folder: _restore_times(
        folder / "w.pt", lambda: (folder / "w.pt").write_bytes(b"WEIGHTS")
    ),
    "the weights, by another file with their size and time": lambda folder: (
        (folder / "new").write_bytes(b"WEIGHTS"),
        os.utime(folder / "new", ns=(0, (folder / "w.pt").stat().st_mtime_ns)),
        os.replace(folder / "new", folder / "w.pt"),
    ),
    "labels that are read and not carried": lambda folder: (folder / "l.json").write_text('["b"]'),
    "a file more in a folder": lambda folder: (folder / "d" / "sub" / "y").write_text("y"),
    "a file less in a folder": lambda folder: (folder / "d" / "sub" / "x").unlink(),
    "the archive": lambda folder: (folder.parent / "store" / "m-1.0.mar").write_bytes(b"junk"),
    "the archive is gone": lambda folder: (folder.parent / "store" / "m-1.0.mar").unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_is_noticed(built: tuple[Path, Path], change: Callable[[Path], object]) -> None:
    folder, store = built
    archive.build(folder, store)
    change(folder)
    _age()
    again = archive.build(folder, store)
    assert not again.unchanged
    with Archive(again.path) as opened:
        assert opened.mismatched() == []
        if "w.pt" in opened:
            assert opened.read("w.pt") == (folder / "w.pt").read_bytes()


def test_a_record_is_not_believed_for_ever(built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, store = built
    archive.build(folder, store)
    monkeypatch.setattr(build_cache, "_BELIEVED", 0.0)
    assert not archive.build(folder, store).unchanged


def test_another_moment_is_another_archive(built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, store = built
    archive.build(folder, store)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert not archive.build(folder, store).unchanged


def test_a_file_touched_in_the_moment_of_the_build_is_read_again(built: tuple[Path, Path]) -> None:
    folder, store = built
    (folder / "w.pt").write_bytes(b"just now")
    moment = time.time() + 60  # a busy machine may take longer for a build than the resolution of the clock
    os.utime(folder / "w.pt", (moment, moment))
    archive.build(folder, store)
    assert build_cache.load(folder / "archive.yaml", store, "mar") is None
    assert not archive.build(folder, store).unchanged
