"""Processes of ``torchmar build``: several at a time, without room, and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from torchmar.archive import Archive


def test_builds_of_one_archive_at_one_time_do_not_meet(tmp_path: Path) -> None:
    recipe, store = tmp_path / "recipe", tmp_path / "store"
    recipe.mkdir()
    (recipe / "archive.yaml").write_text('name: a\nversion: "1"\nhandler: image_classifier\nweights: w.pt\n')
    (recipe / "w.pt").write_bytes(os.urandom(8 << 20))
    command = [sys.executable, "-m", "torchmar", "build", recipe, "--store", store, "--force", "--no-check"]
    builds = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = {build.communicate(timeout=60)[0] for build in builds}
    assert [build.returncode for build in builds] == [0] * 4
    assert len(outputs) == 1
    assert [path.name for path in store.iterdir() if not path.name.startswith(".built-")] == ["a-1.mar"]
    with Archive(store / "a-1.mar") as opened:
        assert opened.mismatched() == []


def test_a_file_system_that_takes_no_more_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "archive.yaml").write_text('name: a\nversion: "1"\nhandler: image_classifier\nweights: w.pt\n')
    (tmp_path / "w.pt").write_bytes(bytes(20 << 20))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))\n"
        "sys.argv = ['torchmar', 'build', '.', '--store', 'store', '--no-check']\nfrom torchmar.cli import main; main()"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "the file system takes no file as large as this" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert list((tmp_path / "store").iterdir()) == []


def test_ctrl_c_during_a_build_leaves_no_partial_file(tmp_path: Path) -> None:
    recipe, store = tmp_path / "recipe", tmp_path / "store"
    recipe.mkdir()
    (recipe / "archive.yaml").write_text('name: a\nversion: "1"\nhandler: image_classifier\nweights: w.pt\n')
    with open(recipe / "w.pt", "wb") as sparse:
        sparse.truncate(1 << 40)  # takes longer than anybody waits
    process = subprocess.Popen([sys.executable, "-m", "torchmar", "build", recipe, "--store", store, "--no-check"])
    while not (store.exists() and list(store.glob(".a-1.mar.*.part"))):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert list(store.iterdir()) == []
