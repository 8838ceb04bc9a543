"""Inputs of ``run``, ``predict`` and ``explain``."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchmar.cli import responses
from torchmar.errors import TorchmarError


def test_a_file_becomes_a_request_and_its_output_names_the_type(tmp_path: Path) -> None:
    file = tmp_path / "seven.png"
    file.write_bytes(b"7")
    request = responses.request(file, False, Path("answer.npy"))
    assert (request.body, request.accept) == (b"7", "application/x-npy")


def test_a_text_in_place_of_a_file_gets_the_way_to_send_it() -> None:
    with pytest.raises(TorchmarError, match="hello world cannot be read") as raised:
        responses.request(Path("hello world"), False, None)
    assert raised.value.hint == "an input is a file, or - for standard input"
