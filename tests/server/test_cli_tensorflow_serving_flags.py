"""torchmar-tfserving takes the flags of TensorFlow Serving, and serves archives below a base path."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.support.command import run_module
from tests.support.waiting import until
from torchmar.engines.addresses import free_ports
from torchmar.engines.server_records import ServerRecord

Make = Callable[..., Path]
MODULE = "torchmar.cli.tensorflow_serving_flags"
COMMAND = [sys.executable, "-m", MODULE]
HANDLER = "def handle(rows, context):\n    return rows and [{'predictions': [VERSION]} for _ in rows]\n"
CONFIG = """
model_config_list {
  config { name: "one" base_path: "models/one" model_platform: "tensorflow" logging_config { } }
  config {
    name: "two"
    base_path: "models/two"
    model_version_policy { all { } }
    version_labels { key: "stable" value: 1 }
  }
}
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Return a function that starts a server with flags and variables; it returns the process and the REST URL."""
    running: list[subprocess.Popen[str]] = []

    def begin(*flags: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
        grpc, rest, management, metrics, grpc_management = free_ports(5)
        (tmp_path / "config.properties").write_text(
            f"management_address=http://127.0.0.1:{management}\nmetrics_address=http://127.0.0.1:{metrics}\n"
            f"grpc_management_port={grpc_management}\n"
        )
        process = subprocess.Popen(
            [*COMMAND, f"--port={grpc}", f"--rest_api_port={rest}", "--config", "config.properties", *flags],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process, f"http://127.0.0.1:{rest}/v1/models"

    yield begin
    for process in running:
        process.kill()
        process.wait()
    if record := ServerRecord.killed(tmp_path / ".torchmar"):
        record.stop()


def answer(url: str) -> object:
    try:
        return requests.post(f"{url}:predict", json={"instances": [1]}, timeout=60).json()
    except requests.ConnectionError:
        return None


def test_a_containers_variables_name_the_model(tmp_path: Path, make: Make, start: Callable[..., tuple]) -> None:
    base = tmp_path / "models" / "clinic"
    base.mkdir(parents=True)
    shutil.copy(make(HANDLER.replace("VERSION", "1"), config={"minWorkers": 1, "maxWorkers": 1}), base / "1.mar")
    process, url = start(
        "--enable_batching", "--tensorflow_session_parallelism=2", MODEL_NAME="clinic", MODEL_BASE_PATH="models"
    )
    until(lambda: answer(f"{url}/clinic") == {"predictions": [1]})
    newer = make(HANDLER.replace("VERSION", "2"), config={"minWorkers": 1, "maxWorkers": 1})
    shutil.copy(newer, base / "2.mar")
    until(lambda: answer(f"{url}/clinic") == {"predictions": [2]})
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "without effect here: --enable_batching, --tensorflow_session_parallelism" in output


def test_a_file_names_several_models(tmp_path: Path, make: Make, start: Callable[..., tuple]) -> None:
    for name in ("one", "two"):
        for version in ("1", "2"):
            target = tmp_path / "models" / name / f"{version}.mar"
            target.parent.mkdir(parents=True, exist_ok=True)
            handler = HANDLER.replace("VERSION", f"'{name} {version}'")
            shutil.copy(make(handler, config={"minWorkers": 1, "maxWorkers": 1}), target)
    (tmp_path / "models.config").write_text(CONFIG)
    _, url = start("--model_config_file", "models.config", "--file_system_poll_wait_seconds=0")
    until(lambda: answer(f"{url}/one") == {"predictions": ["one 2"]})
    until(lambda: answer(f"{url}/two") == {"predictions": ["two 2"]})
    assert answer(f"{url}/two/labels/stable") == {"predictions": ["two 1"]}
    states = requests.get(f"{url}/one", timeout=60).json()["model_version_status"]
    assert [state["version"] for state in states] == ["2"]


def test_a_server_beside_another_needs_its_two_ports_only(tmp_path: Path, make: Make) -> None:
    base = tmp_path / "models"
    base.mkdir()
    shutil.copy(make(HANDLER.replace("VERSION", "1"), config={"minWorkers": 1, "maxWorkers": 1}), base / "1.mar")
    (tmp_path / "empty").mkdir()
    servers = []
    try:
        for name, path in (("first", "models"), ("second", "empty")):
            grpc, rest = free_ports(2)
            flags = [f"--port={grpc}", f"--rest_api_port={rest}", f"--run-folder={name}", f"--model_base_path={path}"]
            with (tmp_path / f"{name}.log").open("w") as log:
                servers.append(subprocess.Popen([*COMMAND, *flags], cwd=tmp_path, stdout=log, stderr=log))
        until(lambda: all("ready" in (tmp_path / f"{name}.log").read_text() for name in ("first", "second")))
    finally:
        for server in servers:
            server.terminate()
            server.wait(60)
    assert "warning" not in (tmp_path / "first.log").read_text()
    assert "has no archive with a number as its name, such as 1.mar or 1/" in (tmp_path / "second.log").read_text()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--model_config_file", "nowhere"], 1, "nowhere cannot be read: No such file or directory"),
        (["--model_config_file", "bad.config"], 1, "bad.config is not a ModelServerConfig"),
        (["--model_config_file", "empty.config"], 1, "names no model"),
        (["--model_config_file", "nameless.config"], 1, "a config has no name"),
        (["--model_base_path", "gs://bucket/model"], 1, "is not a folder of this machine"),
        (["--port", "none"], 2, "invalid int value: 'none'"),
        (["--rest_api_enable_cors_support=maybe"], 2, "'maybe' is not true or false"),
        (["--unknown"], 2, "unrecognized arguments: --unknown"),
    ],
)
def test_wrong_flags_are_rejected_before_anything_starts(
    flags: list[str], code: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.config").write_text("model_config_list {")
    (tmp_path / "empty.config").write_text("")
    (tmp_path / "nameless.config").write_text('model_config_list { config { base_path: "x" } }')
    ran = run_module(MODULE, *flags, cwd=tmp_path)
    assert ran.returncode == code
    assert message in " ".join(ran.stderr.split())
    assert not (tmp_path / ".torchmar").exists()
