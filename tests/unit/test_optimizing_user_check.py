"""The user's own check of a variant."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from torchmar.errors import TorchmarError
from torchmar.optimizing.gate import Metric
from torchmar.optimizing.user_check import run


def command(code: str) -> str:
    return shlex.join([sys.executable, "-S", "-c", code])


@pytest.mark.parametrize(
    ("line", "metric"),
    [
        ("0.913", Metric(0.913)),
        ('{"value": 3.25, "lower_is_better": true, "images": 50}', Metric(3.25, lower_is_better=True)),
        ('{"accuracy": 0.5, "model": "digits"}', Metric(0.5)),
    ],
)
def test_the_last_line_is_the_metric(line: str, metric: Metric, tmp_path: Path) -> None:
    assert run(command(f"print('reads the images'); print({line!r})"), tmp_path / "a.mar", timeout_s=30) == metric


def test_the_archive_is_its_last_argument_and_in_the_environment(tmp_path: Path) -> None:
    code = "import os, sys; print(len(sys.argv[-1]) if sys.argv[-1] == os.environ['TORCHMAR_ARCHIVE'] else 'differ')"
    assert run(command(code), tmp_path / "a.mar", timeout_s=30).value == len(str(tmp_path / "a.mar"))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (command("raise SystemExit('no such data set')"), "ended with 1: no such data set"),
        (command("print('good')"), "is no metric: 'good'"),
        (command("print('NaN')"), "is no metric: 'NaN'"),
        (command('print(\'{"a": 1, "b": 2}\')'), "is no metric"),
        (command("pass"), "is no metric: ''"),
        ("no-such-program eval.py", "cannot be started: No such file"),
        ("python 'eval.py", "is no command: No closing quotation"),
        (" ", "empty command"),
    ],
)
def test_a_check_without_a_metric_is_an_error(check: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TorchmarError, match=message):
        run(check, tmp_path / "a.mar", timeout_s=30)


def test_a_check_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    sleeps = "import time; time.sleep(60)"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', {sleeps!r}]); "
    code += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))"  # ends, and its child keeps the output open
    with pytest.raises(TorchmarError, match=r"took more than 1 s"):
        run(command(code), tmp_path / "a.mar", timeout_s=1)
    child = int((tmp_path / "pid").read_text())
    while _runs(child):
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
