"""The examples that need processes with torch work: in docstrings, and in documents with the mark ``process``."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import torchmar
from tests.support import documents
from tests.support.paths import ROOT
from torchmar import archive
from torchmar.worker.environment import worker_environment


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


def test_the_adapter_for_other_servers_runs_an_extracted_archive(tmp_path: Path) -> None:
    documents.write_project(tmp_path)
    built = archive.build(tmp_path / "archives" / "lengths", tmp_path / "store")
    with zipfile.ZipFile(built.path) as file:
        file.extractall(tmp_path / "lengths")
    page = ROOT / "docs" / "migrate" / "to-another-server.md"
    (adapter,) = (block for block in documents.blocks(page) if block.title == "archive_handler.py")
    (tmp_path / adapter.title).write_text(adapter.code)
    code = (
        "import torch, archive_handler\n"
        "requests = [({'content-type': 'application/json'}, b'\"abc\"'), ({}, b'bytes')]\n"
        "print(archive_handler.ArchiveHandler('lengths', batch_size=2)(requests))"
    )
    # With the variables of workers, so that a process that has loaded torch forks it.
    environment = worker_environment(os.environ)
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert ran.stdout.splitlines()[-1:] == ["[(200, None, {'characters': 3}), (200, None, {'characters': 5})]"], (
        ran.stderr
    )
