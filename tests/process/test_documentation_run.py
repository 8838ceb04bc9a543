"""The examples that need processes with torch work: in docstrings, and in documents with the mark ``process``."""

from __future__ import annotations

from pathlib import Path

import pytest

import torchmar
from tests.support import documents


@pytest.mark.parametrize("name", documents.PROCESS_EXAMPLES)
def test_examples_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents.write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert documents.run_examples(getattr(torchmar, name), name)


@pytest.mark.parametrize(
    "file",
    [file for file in documents.FILES if any("process" in block.marks for block in documents.blocks(file))],
    ids=lambda file: file.stem,
)
def test_commands_print_the_shown_output(file: Path, tmp_path: Path) -> None:
    documents.write_titled(file, tmp_path, "models/")
    for block in documents.blocks(file):
        if "process" in block.marks:
            documents.run(block, tmp_path)
