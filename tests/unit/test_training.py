"""scripts/training.py makes weights that are missing or of other code; without a network it leaves some out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPTS = {
    "offline": "import os, sys; sys.exit(os.EX_UNAVAILABLE)",
    "trained": "from pathlib import Path; Path(__file__).with_name('w.pt').open('a').write('made\\n')",
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


def test_weights_are_made_again_only_by_other_code(archives: Path) -> None:
    training = sys.modules["training"]
    folder = archives / "trained"

    def times_made() -> int:
        assert training.main(["trained"]) == 0
        return len((folder / "w.pt").read_text().splitlines())

    assert times_made() == 1
    os.utime(folder / "w.pt", (0, 0))  # git and copies change times
    assert times_made() == 1
    (folder / "model.py").write_text("HIDDEN = 8\n")
    os.utime(folder / "model.py", (0, 0))
    assert times_made() == 2
    (archives / "corpus.py").write_text("WORDS = 100\n")
    assert times_made() == 3
    (folder / "w.pt").unlink()
    assert times_made() == 1


def test_times_decide_about_weights_without_a_digest(archives: Path) -> None:
    training = sys.modules["training"]
    folder = archives / "trained"
    (folder / "w.pt").write_text("of another version\n")
    os.utime(folder / "w.pt", (0, 0))
    assert training.main(["trained"]) == 0
    assert (folder / "w.pt").read_text() == "of another version\nmade\n"
    (folder / training.DIGEST).unlink()
    assert training.main(["trained"]) == 0
    assert (folder / "w.pt").read_text() == "of another version\nmade\n"
    assert (folder / training.DIGEST).exists()
