"""scripts/training.py makes missing weights, and leaves out those that cannot be downloaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPTS = {
    "offline": "import os, sys; sys.exit(os.EX_UNAVAILABLE)",
    "trained": "from pathlib import Path; Path(__file__).with_name('w.pt').touch()",
}


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    for name, script in SCRIPTS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").write_text(script)
        (tmp_path / name / "archive.yaml").write_text("weights: w.pt\ngenerated_by: train.py\n")
    import training

    monkeypatch.setattr(training, "ARCHIVES", tmp_path)
    return tmp_path


def test_all_archives_but_those_that_need_a_network_are_trained_without_one(
    archives: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sys.modules["training"].main([]) == 0
    assert "archives/offline is left out" in capfd.readouterr().err
    assert (archives / "trained" / "w.pt").exists()


def test_an_archive_that_is_named_is_not_left_out(archives: Path) -> None:
    training = sys.modules["training"]
    assert training.main(["offline"]) == 69
    assert training.main(["trained"]) == 0
    assert training.main(["unknown"]) == 2
