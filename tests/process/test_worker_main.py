"""python -m torchmar.worker runs a handler in its own process, where a debugger works."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.paths import ROOT
from torchmar.worker.environment import worker_environment


def run(*arguments: object, keys: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torchmar.worker", *map(str, arguments)]
    # It sets these variables itself; with them, it is forked by a process that has loaded torch.
    environment = worker_environment(os.environ)
    return subprocess.run(command, cwd=ROOT, env=environment, input=keys, capture_output=True, text=True, timeout=120)


def text_file(folder: Path, text: str) -> Path:
    file = folder / "input.txt"
    file.write_text(text)
    return file


def test_breakpoint_in_a_handler_opens_the_debugger(make: Callable[..., Path], tmp_path: Path) -> None:
    code = """
def handle(rows, context):
    if rows is None:
        return None
    breakpoint()
    return [row["body"].upper() for row in rows]
"""
    ran = run(make(code), text_file(tmp_path, "hello"), keys="p len(rows) * 4321\nc\n")
    assert ran.returncode == 0, ran.stderr
    assert "(Pdb) 4321" in ran.stdout
    assert "input.txt: 200" in ran.stdout
    assert ran.stdout.endswith("\nHELLO\n")


def test_a_handler_that_fails_prints_its_traceback_and_the_status(make: Callable[..., Path], tmp_path: Path) -> None:
    code = "def handle(rows, context):\n    return None if rows is None else 1 / 0\n"
    ran = run(make(code), text_file(tmp_path, "hello"))
    assert ran.returncode == 1
    assert "ZeroDivisionError" in ran.stdout
    assert "input.txt: 503" in ran.stdout


def test_a_handler_that_does_not_load_prints_its_own_traceback(make: Callable[..., Path]) -> None:
    archive = make("raise ValueError('not today')\ndef handle(rows, context): pass\n")
    ran = run(archive)
    assert ran.returncode == 1
    assert ran.stderr.endswith("ValueError: not today\n")
    assert "load_model" not in ran.stderr
    assert "(Pdb)" in run(archive, "--pdb", keys="q\n").stdout


def test_a_missing_archive_is_one_line(tmp_path: Path) -> None:
    ran = run(tmp_path / "absent.mar")
    assert (ran.returncode, ran.stderr.count("\n"), ran.stdout) == (1, 1, "")
    assert ran.stderr.startswith(f"error: {tmp_path}/absent.mar")
