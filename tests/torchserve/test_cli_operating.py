"""Commands that operate servers: state, logs, failures, and no process left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.command import torchmar
from tests.support.moods import MOODY, Make
from tests.support.paths import SAMPLES
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar import exchange, metrics, properties
from torchmar.checks import admission
from torchmar.cli import watching
from torchmar.engines import addresses, state, worker_log
from torchmar.engines.builtin import Builtin
from torchmar.engines.server_records import ServerRecord
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import ArchiveError, ConflictError, EngineError
from torchmar.exchange import Request
from torchmar.inference import InferenceClient

SEVEN = SAMPLES / "seven.png"


def beside(given: properties.Properties) -> int:
    """Return a port of the inference API for which all that move along with it are free."""
    for distance in range(1, 500):
        moved = addresses.shift_ports(given, given.addresses()[0].port + distance)
        with contextlib.suppress(EngineError):
            for address in moved.addresses():
                addresses.check_free(address)
            return moved.addresses()[0].port
    raise AssertionError("no ports are free")


def kill_worker(server: TorchServe, name: str) -> None:
    (worker,) = server.management.describe(name)[0].workers
    assert processes.kill_worker(worker.pid)


@pytest.fixture(autouse=True)
def _of_torchserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve with TorchServe where a test names no engine: where its effects on models are what the test reports."""
    monkeypatch.setenv("TORCHMAR_ENGINE", "torchserve")


@pytest.fixture
def prices(server: TorchServe, make: Make, tmp_path: Path) -> Iterator[Path]:
    """Serve a model whose workers die as they load once the file that is yielded is there."""
    marker = tmp_path / "marker"
    path = make(
        MOODY.format(marker=str(marker)),
        name="prices",
        store=server.model_store,
        config={"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "maxBatchDelay": 1, "responseTimeout": 30},
    )
    server.load(path)
    yield marker
    server.management.unregister("prices")
    path.unlink()


def test_status_shows_a_server_and_its_models(server: TorchServe, tmp_path: Path) -> None:
    where = ("--run-folder", server.folder)
    lines = torchmar("status", *where, cwd=tmp_path).stdout.splitlines()
    running = ServerRecord.find(server.folder)
    assert running
    assert lines[0].startswith(f"{server.folder}: answers, up ")
    assert f"process {running.pid}" in lines[0]
    assert server.server.inference in lines[1]
    assert server.server.grpc_inference in lines[1]
    assert "/metrics" in lines[3]
    assert lines[-1].split()[:5] == ["digits", "1.0", "yes", "1/1", "ready"]
    assert max(map(len, lines[1:])) <= 80
    (document,) = json.loads(torchmar("status", "--json", *where, cwd=tmp_path).stdout)
    (model,) = document["models"]
    assert (document["pid"], document["healthy"], model["state"]) == (running.pid, True, "ready")
    everywhere = json.loads(subprocess.run(
        [sys.executable, "-m", "torchmar", "status", "--json"], cwd=tmp_path, capture_output=True, text=True
    ).stdout)  # fmt: skip
    assert str(server.folder) in [record["run_folder"] for record in everywhere]


def test_a_server_without_a_record_is_reported_as_unmanaged(server: TorchServe, tmp_path: Path) -> None:
    record, running = server.folder / "server.json", ServerRecord.find(server.folder)
    assert running
    hidden = record.rename(tmp_path / "record")
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "torchmar", "status"], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    finally:
        hidden.rename(record)
    assert f"process {running.pid} is a TorchServe that torchmar did not start here" in ran.stderr
    assert str(server.folder) not in ran.stdout


def test_status_of_no_server_is_a_failure(tmp_path: Path) -> None:
    ran = torchmar("status", "--run-folder", "here", cwd=tmp_path, code=1)
    assert "no server runs with here" in ran.stderr
    assert json.loads(torchmar("status", "--run-folder", "here", "--json", cwd=tmp_path, code=1).stdout) == []


def test_a_model_that_crash_loops_is_reported_with_its_traceback_though_the_server_is_healthy(
    server: TorchServe, prices: Path, tmp_path: Path
) -> None:
    prices.touch()
    kill_worker(server, "prices")
    until(lambda: "ValueError" in server.worker_traceback("prices", "1.0"))
    assert InferenceClient(server.server).ping() == "Healthy"
    where = ("--run-folder", server.folder)
    for command, code in (("status", 1), ("models", 0)):
        ran = torchmar(command, *where, cwd=tmp_path, code=code)
        assert "prices 1.0: 0 of 1 workers answer" in ran.stderr
        assert "ValueError: the table of prices is gone" in ran.stderr
        assert "handler.py" in ran.stderr
        assert "digits 1.0:" not in ran.stderr
    (tmp_path / "deployment.yaml").write_text(torchmar("capture", *where, cwd=tmp_path).stdout)
    for command in ("plan", "apply"):
        ran = torchmar(command, *where, cwd=tmp_path, code=1)
        assert "! prices 1.0\n    0 of 1 worker answer" in ran.stdout
        assert "workers of prices 1.0 do not answer" in ran.stdout
        assert "ValueError: the table of prices is gone" in ran.stderr
    (document,) = json.loads(torchmar("status", "--json", *where, cwd=tmp_path, code=1).stdout)
    states = {model["name"]: (model["state"], bool(model["failure"])) for model in document["models"]}
    assert states == {"digits": ("ready", False), "prices": ("crash_looping", True)}
    ran = torchmar("doctor", "--config", server.folder / "config.properties", *where, cwd=tmp_path, code=1)
    assert "ValueError: the table of prices is gone" in ran.stdout
    assert "dies at every start" in ran.stdout
    failures = server.failures()
    assert set(failures) == {("prices", "1.0")}
    prices.unlink()
    until(lambda: server.management.describe("prices")[0].ready == 1, 120)
    assert server.failures() == {}
    torchmar("status", *where, cwd=tmp_path)


def test_a_default_version_without_workers_is_found_by_the_doctor(
    server: TorchServe, prices: Path, tmp_path: Path
) -> None:
    server.management.scale("prices", min_worker=0)
    where = ("--run-folder", server.folder, "--config", server.folder / "config.properties")
    findings = json.loads(torchmar("doctor", "--json", *where, cwd=tmp_path, code=1).stdout)
    (error,) = [finding for finding in findings if finding["severity"] == "error"]
    assert "prices 1.0 is the default version and has no workers" in error["cause"]
    assert "torchmar scale prices 1" in error["remedy"]


def test_logs_are_filtered_by_model_and_followed(server: TorchServe, prices: Path, tmp_path: Path) -> None:
    where = ("--run-folder", server.folder)
    output_lines = torchmar("logs", "prices", "-n", 3, *where, cwd=tmp_path).stdout.splitlines()
    assert len(output_lines) == 3
    assert all(" prices 1.0 " in line for line in output_lines)
    (worker,) = server.management.describe("digits")[0].workers
    assert f" digits 1.0 {worker.id} " in torchmar("logs", "--worker", worker.id, *where, cwd=tmp_path).stdout
    silent = torchmar("logs", "missing", *where, cwd=tmp_path).stderr
    assert silent.startswith("no lines of missing in ")
    assert "; there are lines of digits 1.0, " in silent
    assert "has no logs" in torchmar("logs", "--run-folder", "here", cwd=tmp_path, code=1).stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "torchmar", "logs", "prices", "-f", "-n", "1", *map(str, where)],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    InferenceClient(server.server).request("prices", Request(b"x", "text/plain"))
    assert process.stdout.readline().strip().endswith("a price was requested")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_top_prints_the_load_once_as_a_table_or_json(server: TorchServe, prices: Path, tmp_path: Path) -> None:
    where = ("--run-folder", server.folder)

    def ask_while(process: subprocess.Popen[str]) -> str:
        client = InferenceClient(server.server)
        while process.poll() is None:
            client.request("prices", Request(b"x", "text/plain"))
            client.request("digits", exchange.read(SEVEN), "1.0")
        assert process.stdout
        return process.stdout.read()

    command = [sys.executable, "-m", "torchmar", "top", "-i", "1", *map(str, where)]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
    models = {model["name"]: model for model in json.loads(ask_while(process))["models"]}
    assert set(models) == {"digits", "prices"}
    for model in models.values():
        assert model["requests_per_second"] > 0
        assert model["mean_ms"] >= model["mean_wait_ms"] > 0
        assert (model["ready"], model["default"]) == (1, True)
    # The value that is measured lies in the bucket from 10 to 25 ms.
    assert models["prices"]["handler_p50_ms"] == pytest.approx(17.5)
    assert models["digits"]["handler_p50_ms"] > 0  # in whatever bucket
    table = torchmar("top", "--once", "-i", 0.2, *where, cwd=tmp_path).stdout
    assert table.splitlines()[0].split() == [
        "model",
        "version",
        "ready",
        "queue",
        "req/s",
        "mean",
        "wait",
        "p50",
        "p99",
    ]
    assert max(map(len, table.splitlines())) <= 80
    assert "no server runs" in torchmar("top", "--once", cwd=tmp_path, code=1).stderr


class Terminal:
    """A program in a terminal; a context manager that ends it."""

    def __init__(self, *command: object, cwd: Path, columns: int = 80, lines: int = 24) -> None:
        self._mine, theirs = pty.openpty()
        self.seen = ""
        environment = {**os.environ, "COLUMNS": str(columns), "LINES": str(lines), "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torchmar", *map(str, command)],
            cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._mine)

    def press(self, keys: str) -> None:
        os.write(self._mine, keys.encode())

    def until(self, text: str, seconds: float = 60) -> str:
        """Read until ``text`` is there; return what was read."""
        deadline, start = time.monotonic() + seconds, len(self.seen)
        while text not in self.seen[start:]:
            assert time.monotonic() < deadline, self.seen[-2000:]
            if select.select([self._mine], [], [], 0.1)[0]:
                self.seen += os.read(self._mine, 65536).decode()
        return self.seen[start:]

    def rest(self) -> str:
        with contextlib.suppress(OSError):
            while piece := os.read(self._mine, 65536):
                self.seen += piece.decode()
        return self.seen


def test_top_survives_that_its_server_ends_and_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with Terminal("top", "-i", "0.2", cwd=tmp_path) as terminal:
        terminal.until("no server runs with .torchmar; trying again")
        with Builtin(write_config(tmp_path), tmp_path / "store", tmp_path / ".torchmar"):
            terminal.until("req/s")
            terminal.until("requests/s failed")
        terminal.until("trying again")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(30) == 0
        seen = terminal.rest()
    # The alternate screen and the hidden cursor are entered once and left once.
    assert (seen.count("\x1b[?1049h"), seen.count("\x1b[?1049l")) == (1, 1)
    assert seen.rstrip().endswith("\x1b[?25h") or seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l")
    assert "Traceback" not in seen


def test_top_fits_a_narrow_terminal_and_ends_by_q(server: TorchServe, tmp_path: Path) -> None:
    with Terminal("top", "-i", "0.2", "--run-folder", server.folder, cwd=tmp_path, columns=40, lines=12) as terminal:
        seen = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.until("requests/s failed"))
        assert "req/s" in seen
        assert "p99" not in seen
        assert re.search(r"digits +1\.0\*", seen)
        terminal.press("xq")
        assert terminal.process.wait(30) == 0
        assert "xq" not in terminal.rest()


def test_a_table_of_many_versions_shows_the_busiest_and_the_failing(server: TorchServe) -> None:
    (digits,) = state.versions_on(server.server, server.folder)
    named = [replace(digits, default=False, model=replace(digits.model, version=f"1.{n}")) for n in range(50)]
    named[7] = replace(named[7], failure=worker_log.Failure(2, "Traceback"))
    loads = [
        (version_name, metrics.Load(requests=float(n), latency=None, queue=None, p50=None, p99=None))
        for n, version_name in enumerate(named)
    ]
    shown = watching._table(watching._LoadReport(loads, 0.0), 80, 10)
    assert list(shown.columns[1].cells) == ["1.7", *(f"1.{n}" for n in range(42, 50)), ""]
    assert list(shown.columns[0].cells)[-1] == "41 more"


def test_a_long_name_loses_its_middle_and_a_narrow_table_its_last_columns() -> None:
    rows = [("a-model-with-a-very-long-name", "1.0*", *["1"] * 7)]
    for width in (36, 40, 60, 80):
        fitted, headings = watching._fit(rows, list(watching._HEADINGS), width)
        assert len(fitted[0]) == len(headings)
        assert (
            sum(max(len(cell), len(heading)) + 3 for cell, heading in zip(fitted[0], headings, strict=True)) - 3
            <= width
        )
        assert headings[:3] == ["model", "version", "ready"]
        assert "req/s" in headings
        assert fitted[0][0].startswith("a-mo")
        assert fitted[0][0].endswith("ame")


def test_a_killed_server_is_reported_and_its_record_removed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    write_config(tmp_path)
    where = ("--run-folder", "run")
    serve = ("serve", "--engine", "builtin", "--model-store", "store", "--detach", *where)
    for clear in (("stop", *where), serve):
        torchmar(*serve, cwd=tmp_path)
        running = ServerRecord.find(tmp_path / "run")
        assert running
        os.kill(running.pid, signal.SIGKILL)
        until(lambda: not running.alive)  # noqa: B023
        ran = torchmar("status", *where, cwd=tmp_path, code=1)
        assert f"the server of run (process {running.pid}) ended without being stopped" in ran.stderr
        assert "torchmar logs --run-folder run" in ran.stderr
        if clear is not serve:  # the doctor imports torch
            assert "ended without being stopped" in torchmar("doctor", *where, cwd=tmp_path, code=1).stdout
        assert Path(running.temporary).is_dir()
        torchmar(*clear, cwd=tmp_path)
        assert not Path(running.temporary).exists()
    try:
        second = torchmar(*serve, cwd=tmp_path, code=1)
        assert "torchmar stop --run-folder run ends it" in second.stderr
    finally:
        torchmar("stop", *where, cwd=tmp_path)
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"console.log", "logs", "state.json"}


def test_a_server_whose_run_folder_is_gone_is_reported_with_the_command_that_ends_it(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    write_config(tmp_path)
    serve = ("serve", "--model-store", "store", "--detach")
    torchmar(*serve, cwd=tmp_path)
    folder = tmp_path / ".torchmar"
    running = ServerRecord.find(folder)
    assert running
    hidden = folder.rename(tmp_path / "hidden")
    try:
        taken = torchmar(*serve, cwd=tmp_path, code=1)
        assert f"a TorchServe whose run folder {folder} is gone (process {running.pid})" in taken.stderr
        assert f"kill {running.pid} ends it" in taken.stderr
        status = subprocess.run(
            [sys.executable, "-m", "torchmar", "status"], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert f"run folder {folder} is gone; kill {running.pid} ends it" in status.stderr
    finally:
        hidden.rename(folder)
        torchmar("stop", cwd=tmp_path)


def test_a_second_ctrl_c_does_not_wait_for_running_requests(tmp_path: Path, make: Make) -> None:
    make("import time\n\ndef handle(rows, context):\n    time.sleep(60)\n", store=tmp_path / "model_store")
    write_config(tmp_path)
    process = subprocess.Popen([sys.executable, "-m", "torchmar", "serve"], cwd=tmp_path)
    log = tmp_path / ".torchmar" / "logs" / "workers.log"
    until(lambda: log.exists() and "s_name_part0" in log.read_text())
    running = ServerRecord.find(tmp_path / ".torchmar")
    assert running
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert time.monotonic() - started < 10
    assert not running.alive
    assert not Path(running.temporary).exists()


def test_an_impossible_run_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "file").touch()
    write_config(tmp_path)
    for place in ("file", "file/run"):
        ran = torchmar("serve", "--model-store", "store", "--run-folder", place, cwd=tmp_path, code=1)
        assert ran.stderr.startswith(f"error: nothing can be started in {tmp_path}/{place}: ")
        assert ran.stderr.count("\n") == 2


def test_servers_that_start_at_once_in_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    write_config(tmp_path)
    command = [sys.executable, "-m", "torchmar", "serve", "--engine", "builtin", "--model-store", "store", "--detach"]
    starts = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        messages = [start.communicate(timeout=120)[1] for start in starts]
        assert sorted(start.returncode for start in starts) == [0, 1, 1]
        assert sum("a server runs in" in text or "is taken by" in text for text in messages) == 2
        assert ServerRecord.find(tmp_path / ".torchmar")
    finally:
        torchmar("stop", cwd=tmp_path)


def test_a_server_that_is_stopped_while_it_loads_is_no_models_fault(tmp_path: Path, make: Make) -> None:
    make("import time\n\ndef handle(rows, context):\n    time.sleep(6)\n", store=tmp_path / "model_store")
    write_config(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "torchmar", "serve"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / ".torchmar" / "logs" / "workers.log"
    until(lambda: log.exists() and "s_name_part0" in log.read_text())
    torchmar("stop", cwd=tmp_path)
    messages = process.communicate(timeout=60)[1]
    assert (process.returncode, messages) == (1, "error: TorchServe was stopped while it loaded made-1.0.mar\n")


def test_serve_without_the_model_api_loads_what_the_configuration_names(tmp_path: Path, make: Make) -> None:
    make(store=tmp_path / "model_store")
    write_config(tmp_path, enable_model_api="false")
    ran = torchmar("serve", "--detach", cwd=tmp_path, code=1)
    assert "without enable_model_api no model can be registered" in ran.stderr
    assert "load_models=all" in ran.stderr
    write_config(tmp_path, enable_model_api="false", load_models="all", default_workers_per_model="1")
    for engine in ("torchserve", "builtin"):
        served = torchmar("serve", "--detach", "--engine", engine, cwd=tmp_path)
        torchmar("stop", cwd=tmp_path)
        assert "made 1.0: 1 worker" in served.stdout


def test_serve_respects_load_models(tmp_path: Path, make: Make) -> None:
    make(store=tmp_path / "model_store")
    write_config(tmp_path, load_models="none")
    ran = torchmar("serve", "--detach", "--engine", "builtin", cwd=tmp_path)
    assert "made 1.0" not in ran.stdout
    assert "load_models=none: no further archive is loaded" in ran.stderr
    torchmar("stop", cwd=tmp_path)
    write_config(tmp_path, load_models="made-1.0.mar,nothing.mar", default_workers_per_model="1")
    for engine in ("torchserve", "builtin"):
        ran = torchmar("serve", "--detach", "--engine", engine, cwd=tmp_path)
        torchmar("stop", cwd=tmp_path)
        assert "made 1.0: 1 worker" in ran.stdout
        assert "load_models: nothing.mar is not loaded: Model not found at: nothing.mar" in ran.stderr


def test_a_folder_without_a_configuration_is_served_with_safe_defaults(tmp_path: Path, make: Make) -> None:
    make(MOODY.format(marker="/nowhere"), name="prices", store=tmp_path / "model_store")
    port = beside(properties.Properties(None, {}))
    try:
        ran = torchmar("serve", "--detach", "--port", port, cwd=tmp_path)
        assert "prices 1.0: 1 worker" in ran.stdout
        assert "tokens      " in ran.stdout
        assert "none" not in ran.stdout
        torchmar("unregister", "prices", cwd=tmp_path)
        torchmar("register", "prices-1.0.mar", "--initial-workers", 1, cwd=tmp_path)
        effective = properties.read(tmp_path / ".torchmar" / "config.properties")
        assert all(address.loopback for address in effective.addresses())
        assert effective.get("allowed_urls") == f"{(tmp_path / 'model_store').as_uri()}/.*"
        assert "no config.properties here" in torchmar("doctor", cwd=tmp_path).stdout
    finally:
        torchmar("stop", cwd=tmp_path)


def test_several_servers_run_on_one_machine_and_stop_together(tmp_path: Path, make: Make) -> None:
    marker = tmp_path / "marker"
    make(MOODY.format(marker=str(marker)), name="prices", store=tmp_path / "model_store")
    (tmp_path / "empty").mkdir()
    write_config(tmp_path)
    torchmar("serve", "--model-store", "empty", "--detach", cwd=tmp_path)
    first = ServerRecord.find(tmp_path / ".torchmar")
    assert first
    taken = torchmar("serve", "--run-folder", "b", cwd=tmp_path, code=1)
    assert f"is taken by the server of {tmp_path}/.torchmar (process {first.pid})" in taken.stderr
    assert "--port" in taken.stderr
    given = properties.read(tmp_path / "config.properties")
    port = beside(given)
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ready.bind(str(tmp_path / "notify"))
    ready.settimeout(60)
    second = subprocess.Popen(
        [sys.executable, "-m", "torchmar", "serve", "prices", "--run-folder", "b", "--port", str(port)],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
    )  # fmt: skip
    try:
        assert ready.recv(1000).decode() == "READY=1\nSTATUS=1 of 1 models are loaded"
        assert second.stderr
        moved = properties.read(tmp_path / "b" / "config.properties").addresses()
        assert moved[0].port == port
        assert len({new.port - old.port for new, old in zip(moved, given.addresses(), strict=True)}) == 1
        # A model that starts to crash-loop is reported at once.
        marker.touch()
        (status,) = json.loads(torchmar("status", "--json", "--run-folder", "b", cwd=tmp_path).stdout)
        assert processes.kill_worker(status["models"][0]["workers"][0]["pid"])
        seen = ""
        while "the table of prices is gone" not in seen.partition("error: prices 1.0: 0 of 1 workers")[2]:
            line = second.stderr.readline()
            assert line, seen
            seen += line
        assert "Traceback" in seen
        output = torchmar("stop", "--all", cwd=tmp_path).stdout
        assert output.count("stopped") == 2
        assert f"of {tmp_path}/b " in output
        assert second.wait(60) == 0
        assert "the server was stopped" in second.stderr.read()
        assert ready.recv(1000).decode() == "STOPPING=1"
    finally:
        torchmar("stop", "--all", cwd=tmp_path)
        second.kill()
        second.communicate()
        ready.close()
    assert not first.alive
    assert "no server runs with a folder in" in torchmar("stop", "--all", cwd=tmp_path).stderr


def test_an_archive_with_an_error_is_not_loaded_unless_requested(tmp_path: Path, make: Make) -> None:
    path = make("class A: ...\nclass B: ...", store=tmp_path / "model_store")
    write_config(tmp_path, load_models="all", default_workers_per_model="1")
    ran = torchmar("serve", "--detach", cwd=tmp_path, code=1)
    assert f"MAR301 model_store/{path.name}!handler.py" in ran.stderr
    assert "--no-check" in ran.stderr
    assert not (tmp_path / ".torchmar").exists()
    # The command waits for models that the server loads itself, and reports them like the others.
    tried = torchmar("serve", "--detach", "--no-check", cwd=tmp_path, code=1)
    assert "Traceback" in tried.stderr
    assert "made 1.0: 0 of 1 workers answer" in tried.stderr
    assert "no model could be loaded" in tried.stderr
    assert ServerRecord.find(tmp_path / ".torchmar") is None


def test_an_archive_whose_bytes_are_not_those_listed_is_not_admitted(tmp_path: Path, make: Make) -> None:
    path = make(disk={"words.txt": "a word"}, files={"words.txt": "words.txt"})
    admission.admit(path)
    content = path.read_bytes()
    assert content.count(b"a word") == 1
    path.write_bytes(content.replace(b"a word", b"b word"))
    with pytest.raises(ArchiveError, match=r"MAR10. .*!words\.txt") as caught:
        admission.admit(path)
    assert "--no-check" in caught.value.hint


def test_kserve_over_rest_and_grpc_and_metrics_are_on(server: TorchServe) -> None:
    import requests

    key_file = server.server.key_file
    assert key_file
    token = json.loads(key_file.read_text())["inference"]["key"]
    headers = {"Authorization": f"Bearer {token}"}
    answer = requests.post(
        f"{server.server.inference}/v1/models/digits:predict", data=SEVEN.read_bytes(), headers=headers, timeout=30
    )
    assert next(iter(answer.json())) == "7"
    grpc = pytest.importorskip("grpc")
    address = server.server.grpc_inference.partition("://")[2]
    with grpc.insecure_channel(address) as channel:
        live = channel.unary_unary("/org.pytorch.serve.grpc.openinference.GRPCInferenceService/ServerLive")
        # An empty request; the answer's first field, live, is true.
        metadata = [("protocol", "gRPC"), ("channel", "inference"), ("authorization", f"Bearer {token}")]
        assert live(b"", metadata=metadata, timeout=30) == b"\x08\x01"


def test_a_second_archive_of_the_same_version_is_distinguished_from_the_first(
    server: TorchServe, make: Make, tmp_path: Path
) -> None:
    first = make(name="same", store=server.model_store)
    second = first.with_name("copy.mar")
    second.write_bytes(first.read_bytes())
    server.load(first)
    try:
        assert server.load(first).ready == 1
        with pytest.raises(ConflictError, match=r"copy\.mar is same 1\.0, and so is same-1\.0\.mar"):
            server.load(second)
    finally:
        server.management.unregister("same")
        first.unlink()
        second.unlink()
