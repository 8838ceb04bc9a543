"""torchmar.importing.sagemaker turns packages into recipes, and refuses what SageMaker's toolkit would not run."""

from __future__ import annotations

import bz2
import gzip
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.tars import tar_of
from torchmar import archive, recipe
from torchmar.archive import digests, pack_tgz
from torchmar.errors import TorchmarError
from torchmar.importing import sagemaker

SCRIPT = b"def model_fn(model_dir):\n    return 1\n"


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def attributes(size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo("code/inference.py")
    member.pax_headers = {"comment": "x" * size}
    return member


def test_a_package_becomes_a_recipe_that_builds(tmp_path: Path) -> None:
    package = tar_of(
        tmp_path / "flowers.tar.gz",
        {
            "./code/inference.py": SCRIPT + b"import sagemaker_inference\n",
            "./code/requirements.txt": b"six==1.17.0\n",
            "./code/lib/words.py": b"",
            "./._model.pth": b"junk of macOS",
            "./model.pth": b"weights",
        },
    )
    opened = sagemaker.open_package(package)
    assert opened
    with opened:
        imported = sagemaker.import_package(package, tmp_path / "archives", opened=opened)
    assert imported.folder == tmp_path / "archives" / "flowers"
    document = yaml.safe_load((imported.folder / recipe.FILE_NAME).read_text())
    assert document == {
        "name": "flowers",
        "version": "1.0",
        "handler": "torchmar_handlers.sagemaker",
        "files": {"code": "code", "model.pth": "model.pth"},
        "requirements": "code/requirements.txt",
    }
    assert "add sagemaker-inference to code/requirements.txt" in imported.notes[0]
    built = archive.build(imported.folder, tmp_path / "store")
    with archive.Archive(built.path) as opened:
        names = {member.name for member in opened.members}
        assert {"code/inference.py", "code/lib/words.py", "model.pth", "requirements.txt"} <= names
        assert "torchmar_handlers/sagemaker.py" in names


def test_another_script_is_named(tmp_path: Path) -> None:
    package = tar_of(tmp_path / "m.tar.gz", {"serve.py": SCRIPT})
    with pytest.raises(TorchmarError, match=r"no inference.py, and serve.py defines functions") as raised:
        sagemaker.import_package(package, tmp_path)
    assert raised.value.hint.startswith("--program serve.py")
    folder = sagemaker.import_package(package, tmp_path, program="serve.py", name="named", version="2.0").folder
    document = yaml.safe_load((folder / recipe.FILE_NAME).read_text())
    assert (document["name"], document["version"]) == ("named", "2.0")
    assert document["config"] == {"handler": {"program": "serve.py"}}


def test_a_folder_is_a_package_too_and_an_archive_is_none(tmp_path: Path, make: Callable[..., Path]) -> None:
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "code" / "inference.py").write_bytes(SCRIPT)
    assert sagemaker.is_package_folder(tmp_path / "model")
    assert sagemaker.import_package(tmp_path / "model", tmp_path / "archives").folder.name == "model"
    made = make()
    packed = tmp_path / "made.tar.gz"
    with archive.Archive(made) as opened:
        names = [member.name for member in opened.members if member.name != digests.PATH]
        pack_tgz({name: opened.read(name) for name in names}, packed, "made")
    assert sagemaker.open_package(packed) is None
    assert sagemaker.open_package(made) is None


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../evil.py": SCRIPT}, "outside of its folder"),
        ({"/etc/evil.py": SCRIPT}, "outside of its folder"),
        ({"code/inference.py": link("code/inference.py", "/etc/passwd")}, "a symbolic or hard link"),
        ({"code/inference.py": link("code/inference.py", "/etc/passwd", tarfile.LNKTYPE)}, "a symbolic or hard link"),
        ({"code/null": link("code/null", "", tarfile.CHRTYPE)}, "a device, a pipe or a socket"),
        ({"code/inference.py": b"def ("}, r"code/inference.py:1 is not Python"),
        ({"code/inference.py": b"-" * 100_000 + b"1"}, r"code/inference.py is not Python"),
        ({"code/inference.py": attributes(2 << 20)}, "a member has more than a megabyte of names and attributes"),
        ({"model.txt": b""}, "there is no inference.py, and its top has neither model.pt nor"),
        ({"a.pth": b"1", "b.pth": b"2"}, "its top has a.pth, b.pth; SageMaker's toolkit loads one file of these"),
        ({"model.pth": b"\x80\x02."}, "which SageMaker's toolkit does not load"),
        ({"inner.tar.gz": b""}, "inner.tar.gz in it may be the package"),
        ({"m/code/inference.py": SCRIPT}, "has its content in the folder m/"),
        (
            {"code/inference.py": SCRIPT + b"def transform_fn(): pass\ndef input_fn(): pass\n"},
            "defines transform_fn and input_fn",
        ),
        ({"code/inference.py": SCRIPT, "archive.yaml": b""}, "has archive.yaml at its top"),
    ],
)
def test_what_cannot_be_imported_is_refused_and_nothing_is_written(
    tmp_path: Path, members: dict[str, bytes | tarfile.TarInfo], message: str
) -> None:
    package = tar_of(tmp_path / "m.tar.gz", members)
    with pytest.raises(TorchmarError) as raised:
        sagemaker.import_package(package, tmp_path / "archives")
    assert re.search(message, f"{raised.value.message} {raised.value.hint}")
    assert not list((tmp_path / "archives").glob("*"))


def test_an_existing_folder_stays_as_it_is(tmp_path: Path) -> None:
    package = tar_of(tmp_path / "m.tar.gz", {"code/inference.py": SCRIPT})
    (tmp_path / "archives" / "m").mkdir(parents=True)
    with pytest.raises(TorchmarError, match="exists already"):
        sagemaker.import_package(package, tmp_path / "archives")
    assert not list((tmp_path / "archives" / "m").iterdir())


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    package = tar_of(tmp_path / "m.tar.gz", {"code/inference.py": SCRIPT, "model.bin": os.urandom(100_000)})
    package.write_bytes(package.read_bytes()[:-20_000])
    with pytest.raises(TorchmarError, match="is not an archive"):
        sagemaker.import_package(package, tmp_path / "archives")
    with pytest.raises(TorchmarError, match="cannot be a model's name"):
        sagemaker.import_package(package, tmp_path / "archives", name="a/b")
    # The end of a tar that was cut off, or a damaged header, would be an end for tarfile, without model.bin.
    whole = gzip.decompress(tar_of(package, {"code/inference.py": SCRIPT, "model.bin": b"1"}).read_bytes())
    damaged = bytearray(whole)
    damaged[1024] ^= 1
    for content in (whole[:1024], whole[:1500], bytes(damaged)):
        package.write_bytes(gzip.compress(content))
        with pytest.raises(TorchmarError, match="its tar ends too early or is damaged"):
            sagemaker.import_package(package, tmp_path / "archives")
    for content, message in ((bz2.compress(whole), "compressed with bzip2"), (whole, "a tar that is not compressed")):
        package.write_bytes(content)
        with pytest.raises(TorchmarError, match=message):
            archive.Archive(package)
    assert not (tmp_path / "archives").exists()
