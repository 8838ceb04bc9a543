"""The examples in docstrings that run an archive in a worker process work."""

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
