"""Findings about layouts and manifests, compared with TorchServe's frontend and worker on the same archives."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.judges import Frontend
from torchmar import checks
from torchmar.archive import Archive

HANDLER = b"def handle(rows, context):\n    return rows\n"
MODEL = {"modelName": "m", "handler": "h.py", "modelVersion": "1.0"}
MANIFEST = json.dumps({"model": MODEL}).encode()


@pytest.fixture(scope="module")
def frontend() -> Iterator[Frontend]:
    with Frontend() as judge:
        yield judge


def zipped(members: Mapping[str, bytes], **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def mar(text: bytes | object = MANIFEST, **more: bytes) -> bytes:
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return zipped({"MAR-INF/MANIFEST.json": text, "h.py": HANDLER, **more})


def streamed(method: int) -> bytes:
    """Return a zip as a program writes it to a pipe: the size of each member stands behind it."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.written = io.BytesIO()

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            return self.written.write(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", method) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", MANIFEST)
        archive.writestr("h.py", HANDLER)
    return pipe.written.getvalue()


def zip64() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in {"MAR-INF/MANIFEST.json": MANIFEST, "h.py": HANDLER}.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
    return stream.getvalue()


def commented() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", MANIFEST)
        archive.writestr("h.py", HANDLER)
        archive.comment = b"made by hand"
    return stream.getvalue()


def tarred(*entries: tuple[str, bytes | None], form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", format=form) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            info.size = len(content or b"")
            archive.addfile(info, io.BytesIO(content or b""))
    return stream.getvalue()


ROOT = (("m/MAR-INF/MANIFEST.json", MANIFEST), ("m/h.py", HANDLER))
FILES = {
    "plain": ("a.mar", mar()),
    "deflated": ("a.mar", zipped({"MAR-INF/MANIFEST.json": MANIFEST, "h.py": HANDLER}, compression=8)),
    "bzip2": ("a.mar", zipped({"MAR-INF/MANIFEST.json": MANIFEST, "h.py": HANDLER}, compression=12)),
    "names that begin with a dot and a slash": (
        "a.mar",
        zipped({"./MAR-INF/MANIFEST.json": MANIFEST, "./h.py": HANDLER}),
    ),
    "two slashes": ("a.mar", mar(**{"a//b.txt": b"1"})),
    "a folder": ("a.mar", mar(**{"v/": b""})),
    "names that differ in case": ("a.mar", mar(**{"X.txt": b"1", "x.txt": b"2"})),
    "names in other scripts": ("a.mar", mar(**{"é漢.txt": b"1"})),
    "a name that is too long": ("a.mar", mar(**{"a" * 300: b"1"})),
    "a file that is a folder": ("a.mar", mar(**{"v": b"1", "v/w": b"2"})),
    "above its folder": ("a.mar", mar(**{"../x": b"1"})),
    "bytes before it": ("a.mar", b"#!/bin/sh\n" + mar()),
    "bytes behind it": ("a.mar", mar() + b"more"),
    "a comment": ("a.mar", commented()),
    "zip64": ("a.mar", zip64()),
    "stored through a pipe": ("a.mar", streamed(zipfile.ZIP_STORED)),
    "deflated through a pipe": ("a.mar", streamed(zipfile.ZIP_DEFLATED)),
    "a zip called otherwise": ("a.zip", mar()),
    "no zip": ("a.mar", b"<html>"),
    "nothing": ("a.mar", b""),
    "a tar": ("a.tar.gz", tarred(*ROOT)),
    "a tar by another name": ("a.tgz", tarred(*ROOT)),
    "a tar of a folder's content": ("a.tar.gz", tarred(("./MAR-INF/MANIFEST.json", MANIFEST), ("./h.py", HANDLER))),
    "a tar with its folders": (
        "a.tar.gz",
        tarred((".", None), ("./MAR-INF", None), ("./MAR-INF/MANIFEST.json", MANIFEST), ("./h.py", HANDLER)),
    ),
    "a tar with a folder within the first": (
        "a.tar.gz",
        tarred(("./m/MAR-INF/MANIFEST.json", MANIFEST), ("./m/h.py", HANDLER)),
    ),
    "a tar without a folder around it": ("a.tar.gz", tarred(("MAR-INF/MANIFEST.json", MANIFEST), ("h.py", HANDLER))),
    "a tar of two folders": ("a.tar.gz", tarred(ROOT[0], ("n/h.py", HANDLER))),
    "a tar with a file beside its folder": ("a.tar.gz", tarred(*ROOT, ("README", b"1"))),
    "a GNU tar with a long name": ("a.tar.gz", tarred(*ROOT, ("m/" + "a" * 120, b"1"), form=tarfile.GNU_FORMAT)),
    "a pax tar with a long name": ("a.tar.gz", tarred(*ROOT, ("m/é" + "a" * 120, b"1"))),
}
MANIFESTS: dict[str, bytes | object] = {
    "no version": {"model": {"modelName": "m", "handler": "h.py"}},
    "no handler": {"model": {"modelName": "m"}},
    "a byte order mark": b"\xef\xbb\xbf" + MANIFEST,
    "UTF-16": MANIFEST.decode().encode("utf-16"),
    "Latin-1": b'{"model": {"modelName": "m", "handler": "h.py", "description": "\xe9"}}',
    "a comment": b"// m\n" + MANIFEST,
    "single quotes": b"{'model': {'modelName': 'm', 'handler': 'h.py'}}",
    "a comma at the end": b'{"model": {"modelName": "m", "handler": "h.py"},}',
    "something behind it": MANIFEST + b" x",
    "a key twice": b'{"model": {"modelName": "m", "modelName": "n", "handler": "h.py"}}',
    "not a number": b'{"model": {"modelName": "m", "handler": "h.py", "extensions": NaN}}',
    "a number as name": {"model": {**MODEL, "modelName": 5}},
    "a number as version": {"model": {**MODEL, "modelVersion": 1.5}},
    "a flag as version": {"model": {**MODEL, "modelVersion": True}},
    "a number as description": {"model": {**MODEL, "description": 5}},
    "a list as description": {"model": {**MODEL, "description": ["a"]}},
    "a number as moment": {"model": MODEL, "createdOn": 5},
    "keys of other archivers": {"model": {**MODEL, "extensions": {"a": 1}, "foo": [1]}, "license": "x"},
    "python3": {"model": MODEL, "runtime": "python3"},
    "PYTHON": {"model": MODEL, "runtime": "PYTHON"},
    "Python": {"model": MODEL, "runtime": "Python"},
    "python2": {"model": MODEL, "runtime": "python2"},
    "no runtime": {"model": MODEL, "runtime": None},
    "C++": {"model": MODEL, "runtime": "LSP"},
    "a list": [1],
    "a model that is a list": {"model": [1]},
    "null": b"null",
    "nothing": b"",
}
CASES = {**FILES, **{f"manifest: {name}": ("a.mar", mar(text)) for name, text in MANIFESTS.items()}}


def loads(verdict: Mapping[str, Any]) -> bool:
    """Return whether the frontend registers an archive, and the worker reads its manifest and has a handler."""
    if "error" in verdict or not verdict.get("handler"):
        return False
    try:
        with Path(verdict["folder"], "MAR-INF", "MANIFEST.json").open() as file:
            json.load(file)
    except ValueError:
        return False
    return True


def errors(path: Path) -> list[str]:
    return [finding.code.name for finding in checks.check(path) if finding.severity == "error"]


@pytest.mark.parametrize(("name", "content"), CASES.values(), ids=CASES)
def test_an_archive_has_an_error_exactly_where_torchserve_does_not_load_it(
    frontend: Frontend, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    verdict = frontend.read(tmp_path / name)
    assert (not errors(tmp_path / name)) is loads(verdict), (errors(tmp_path / name), verdict)


TEXT = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model=st.fixed_dictionaries(
        {"modelName": st.just("m"), "handler": st.just("h.py")},
        optional={
            "modelVersion": st.sampled_from(["1.0", 2, 2.5, None]),
            "description": TEXT | st.lists(TEXT, max_size=2),
            "extensions": TEXT | st.dictionaries(st.text(max_size=3), TEXT, max_size=2),
            "x": TEXT | st.lists(TEXT, max_size=2),
        },
    ),
    rest=st.fixed_dictionaries(
        {}, optional={"runtime": st.sampled_from(["python", "python3", "LSP", "pypy"]), "createdOn": TEXT, "x": TEXT}
    ),
    ascii=st.booleans(),
)
def test_generated_manifests_are_rejected_exactly_where_torchserve_rejects_them(
    frontend: Frontend, tmp_path: Path, model: dict[str, Any], rest: dict[str, Any], ascii: bool
) -> None:
    text = json.dumps({"model": model, **rest}, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    (tmp_path / "a.mar").write_bytes(mar(text))
    verdict = frontend.read(tmp_path / "a.mar")
    assert (not errors(tmp_path / "a.mar")) is loads(verdict), (text, errors(tmp_path / "a.mar"), verdict)


def folder_of(path: Path) -> Path:
    """Write an archive as a folder."""
    (path / "MAR-INF").mkdir(parents=True)
    (path / "MAR-INF" / "MANIFEST.json").write_bytes(MANIFEST)
    (path / "h.py").write_bytes(HANDLER)
    return path


def as_dvc(path: Path) -> Path:
    """Lay files as links into a cache beside the workspace."""
    cache = path.parent / ".dvc" / "cache" / "ab"
    cache.mkdir(parents=True)
    folder_of(path)
    for number, file in enumerate([path / "h.py", path / "MAR-INF" / "MANIFEST.json"]):
        os.replace(file, cache / str(number))
        file.symlink_to(cache / str(number))
    return path


def as_hub(path: Path) -> Path:
    """Lay files as a hub's cache does: snapshots of relative links into blobs."""
    hub = path.parent / "models--org--m"
    (hub / "blobs").mkdir(parents=True)
    snapshot = folder_of(hub / "snapshots" / "0123")
    for number, file in enumerate([snapshot / "h.py", snapshot / "MAR-INF" / "MANIFEST.json"]):
        os.replace(file, hub / "blobs" / str(number))
        file.symlink_to(os.path.relpath(hub / "blobs" / str(number), file.parent))
    path.symlink_to(snapshot)
    return path


def as_mount(path: Path) -> Path:
    """Lay files as Kubernetes mounts a volume: links into ``..data``, itself a link to the latest revision."""
    folder_of(path / "..2026_01_01")
    (path / "..data").symlink_to("..2026_01_01")
    for name in ("h.py", "MAR-INF"):
        (path / name).symlink_to(f"..data/{name}")
    return path


@pytest.mark.parametrize("lay", [folder_of, as_dvc, as_hub, as_mount])
def test_a_folder_of_links_is_the_archive_that_the_server_sees(frontend: Frontend, tmp_path: Path, lay: Any) -> None:
    path = lay(tmp_path / "m")
    assert loads(frontend.read(path))
    assert errors(path) == []
    with Archive(path) as archive:
        assert sorted(archive.sizes) == ["MAR-INF/MANIFEST.json", "h.py"]
        assert archive.read("h.py") == HANDLER


def test_a_link_to_nowhere_and_one_in_an_archive_are_errors(frontend: Frontend, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    (folder / "model.pt").symlink_to(tmp_path / "gone.pt")
    assert errors(folder) == ["MAR104"]
    info = zipfile.ZipInfo("model.pt")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", MANIFEST)
        archive.writestr("h.py", HANDLER)
        archive.writestr(info, "elsewhere.pt")
    assert errors(tmp_path / "a.mar") == ["MAR104"]
    extracted = Path(frontend.read(tmp_path / "a.mar")["folder"], "model.pt")
    assert extracted.read_text() == "elsewhere.pt"  # not the weights


def test_an_archive_in_a_store_of_links_is_read(tmp_path: Path) -> None:
    (tmp_path / "0123").write_bytes(mar())
    (tmp_path / "a.mar").symlink_to("0123")
    assert errors(tmp_path / "a.mar") == []


def test_a_key_of_the_manifest_that_is_given_twice_is_found(tmp_path: Path) -> None:
    text = b'{"model": {"modelName": "m", "modelName": "n", "handler": "h.py"}, "x": [{"a": 1, "a": 2}]}'
    (tmp_path / "a.mar").write_bytes(mar(text))
    causes = [finding.cause for finding in checks.check(tmp_path / "a.mar") if finding.code.name == "MAR208"]
    assert sorted(cause.partition(" ")[0] for cause in causes) == ["a", "modelName"]


def test_members_that_differ_in_case_are_a_warning_and_the_archive_opens(tmp_path: Path) -> None:
    (tmp_path / "a.mar").write_bytes(mar(**{"X.txt": b"1", "x.txt": b"2"}))
    assert errors(tmp_path / "a.mar") == []
    assert "MAR105" in [finding.code.name for finding in checks.check(tmp_path / "a.mar")]
    with Archive(tmp_path / "a.mar") as archive:
        archive.extract(tmp_path / "out")
    assert {file.read_bytes() for file in (tmp_path / "out").glob("?.txt")} == {b"1", b"2"}
