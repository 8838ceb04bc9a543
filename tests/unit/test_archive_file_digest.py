"""torchmar.archive.file_digest names a file as sha256sum does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from torchmar.archive import file_digest

HEX = "0123456789abcdef" * 4


def test_it_is_what_sha256sum_prints(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content" * 1_000_000)
    printed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert file_digest.of(path) == printed.split()[0]
    with pytest.raises(InterruptedError):
        file_digest.of(path, lambda: True)


def test_texts_are_read_strictly() -> None:
    assert file_digest.parse("") == ""
    assert file_digest.parse(f"SHA256:{HEX.upper()}") == HEX
    assert file_digest.show(HEX) == f"sha256:{HEX}"
    for text in (HEX, f"md5:{HEX}", f"sha256:{HEX}0", f"sha256:{HEX[:-1]}g", "sha256:"):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            file_digest.parse(text)


def test_a_url_may_end_in_a_digest() -> None:
    assert file_digest.split(f"s3://bucket/x.mar#sha256={HEX}") == ("s3://bucket/x.mar", HEX)
    assert file_digest.split("x#1.mar") == ("x#1.mar", "")
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        file_digest.split("x.mar#sha256=abc")
