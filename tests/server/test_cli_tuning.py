"""``torchmar tune`` with a real server; the time of a batch is slept, so that other programs hardly change it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import torchmar
from tests.support.preloaded import unforked
from tests.support.waiting import until
from torchmar import archive, recipe, server_config

HANDLER = """\
import time
def handle(rows, context):
    if rows is None:
        return None
    time.sleep(0.005 + 0.005 * len(rows))
    return ["done"] * len(rows)
"""
RECIPE = """\
# The recipe of a test.
name: slept
version: "1.0"
handler: handler.py
config:
  minWorkers: 4 # too many
  maxWorkers: 4
  maxBatchDelay: 5
samples:
  - {json: [1], expect: done}
"""


@pytest.fixture
def slept(tmp_path: Path) -> Path:
    folder = tmp_path / "slept"
    folder.mkdir()
    (folder / "handler.py").write_text(HANDLER)
    (folder / "archive.yaml").write_text(RECIPE)
    return folder


def record(folder: Path) -> dict[str, Any]:
    files = list((folder / ".torchmar" / "tune").glob("slept-1.0-*.json"))
    return dict(json.loads(files[0].read_text())) if files else {"trials": []}


def test_an_interrupted_tuning_continues_and_writes_its_result(slept: Path, tmp_path: Path) -> None:
    options = ["tune", "slept", "--slo", "p99<2s", "--rate", "20", "--cheapest", "--trial", "3s"]
    process = subprocess.Popen(
        [sys.executable, "-m", "torchmar", *options],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "80"},
        text=True,
    )
    until(lambda: bool(record(tmp_path)["trials"]), 240)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "the same command continues" in messages
    first = record(tmp_path)["trials"]

    with unforked():  # the processes of the server are measured: a forked one has another parent
        ran = torchmar(*options, "--write", "--picture", "front.svg", cwd=tmp_path)
    assert f"profiles and {len(first)} measurement" in ran.stderr
    assert "of an earlier run are used" in ran.stderr
    assert "1 worker, " in ran.stdout
    # 60 requests show a median, and no 99th percentile.
    assert "requests/s with p50" in ran.stdout
    assert "warning: whether it keeps p99 < 2000 ms is not shown: too few requests" in ran.stderr
    trials = record(tmp_path)["trials"]
    assert trials[: len(first)] == first
    assert record(tmp_path)["complete"]
    assert (tmp_path / "front.svg").read_text().startswith("<svg")

    text = (slept / "archive.yaml").read_text()
    assert "minWorkers: 1 # too many" in text
    written, _ = recipe.read(slept)
    assert isinstance(written.config, server_config.ServerConfig)
    assert written.config.maxWorkers == 1
    assert written.config.batchSize
    evidence = json.loads((slept / "tuning.json").read_text())
    assert evidence["chosen"]["setting"]["workers"] == 1
    assert evidence["reasons"]
    assert evidence["machine"]["cores"]
    with archive.Archive(archive.build(slept, tmp_path / "store").path) as built:
        assert json.loads(built.read("tuning.json")) == evidence


def test_an_unreachable_target_shows_what_is_possible(slept: Path, tmp_path: Path) -> None:
    ran = torchmar("tune", "slept", "--slo", "p99<8ms", "--trial", "3s", cwd=tmp_path, code=1)
    assert "no setting keeps p99 < 8.00 ms" in ran.stderr
    assert "the best that was measured: p99" in ran.stderr
    assert len(record(tmp_path)["trials"]) <= 3


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--slo", "fast"], 1, "'fast' is no latency target"),
        (["--slo", "p99<50ms", "--budget", "5s"], 1, "a budget of 5 s is too short"),
        (["--slo", "p99<50ms", "--trial", "0.1s"], 1, "a measurement of 0.1 s is too short"),
        (["--slo", "p99<50ms", "--memory", "much"], 1, "'much' is no size"),
        (["--slo", "p99<50ms", "--cheapest"], 2, "needs --rate"),
        (["--slo", "p99<50ms", "--rate", "0"], 2, "--rate"),
        (["--slo", "p99<50ms", "--rate", "5", "--max-throughput"], 2, "does not go together"),
        (["--slo", "p99<50ms", "--requests", "nowhere"], 1, "nowhere does not exist"),
        (["--slo", "p99<50ms", "--picture", "nowhere/front.svg"], 2, "there is no folder nowhere"),
        (["--slo", "p99<50ms", "--memory", "1MiB"], 1, "more than --memory allows"),
        ([], 2, "--slo"),
    ],
)
def test_wrong_options_are_named(slept: Path, tmp_path: Path, options: list[str], code: int, message: str) -> None:
    ran = torchmar("tune", "slept", *options, cwd=tmp_path, code=code)
    assert message in " ".join(ran.stderr.replace("│", " ").split())
    assert "Traceback" not in ran.stderr


def test_an_archive_that_does_not_exist_is_not_taken_for_requests(tmp_path: Path) -> None:
    ran = torchmar("tune", "nowhere", "--slo", "p99<50ms", cwd=tmp_path, code=1)
    assert ran.stderr.startswith("error: nowhere does not exist\nhint: name a .mar file")


def test_a_record_that_cannot_be_written_is_found_before_anything_is_measured(slept: Path, tmp_path: Path) -> None:
    (tmp_path / ".torchmar").write_text("no folder")
    ran = torchmar("tune", "slept", "--slo", "p99<50ms", cwd=tmp_path, code=1)
    assert ran.stderr.startswith("error: .torchmar/tune/slept-1.0-")
    assert "cannot be written: Not a directory" in ran.stderr


def test_an_archive_without_samples_needs_requests(slept: Path, tmp_path: Path) -> None:
    (slept / "archive.yaml").write_text(RECIPE.partition("samples:")[0])
    assert "has no requests" in torchmar("tune", "slept", "--slo", "p99<50ms", cwd=tmp_path, code=1).stderr


def test_only_a_recipe_can_be_written(slept: Path, tmp_path: Path) -> None:
    built = archive.build(slept, tmp_path / "store").path
    ran = torchmar("tune", built, "--slo", "p99<50ms", "--write", cwd=tmp_path, code=2)
    assert "is no recipe" in ran.stderr
