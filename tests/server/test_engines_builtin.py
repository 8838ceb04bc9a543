"""torchmar.engines.builtin runs torchmar's own server like any other engine, without Java."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.command import torchmar
from tests.support.families import runs
from tests.support.moods import MOODY, Make
from tests.support.paths import SAMPLES
from tests.support.preloaded import unforked
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar import exchange, properties
from torchmar.engines.builtin import Builtin
from torchmar.engines.server_records import ServerRecord
from torchmar.errors import BindError, ConnectError, EngineError, ModelFailedError, NotFoundError, ServerError
from torchmar.exchange import Request
from torchmar.inference import InferenceClient

SEVEN = SAMPLES / "seven.png"


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Builtin]:
    """Run the built-in server with the digits loaded, and its real processes; its model store may be added to."""
    folder = tmp_path_factory.mktemp("builtin")
    store = folder / "model_store"
    store.mkdir()
    shutil.copy(digits, store)
    with contextlib.ExitStack() as stack:
        with unforked():
            running = stack.enter_context(Builtin(write_config(folder), store, folder / "run"))
        running.load(store / digits.name)
        yield running


def test_it_answers_and_explains(builtin: Builtin) -> None:
    with InferenceClient(builtin.server) as client:
        assert client.ping() == "Healthy"
        assert next(iter(client.predict("digits", SEVEN))) == "7"
        assert client.explain("digits", SEVEN)["label"] == "7"


def test_it_is_closed_to_others(builtin: Builtin) -> None:
    with pytest.raises(ServerError, match="does not match any allowed URL"):
        builtin.management.register("https://example.com/x.mar")
    key_file = builtin.server.key_file
    assert key_file
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    running = ServerRecord.find(builtin.folder)
    assert running
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in (psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True))
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_commands_find_the_server_and_name_its_engine(builtin: Builtin, tmp_path: Path) -> None:
    where = ("--run-folder", builtin.folder)
    lines = torchmar("status", *where, cwd=tmp_path).stdout.splitlines()
    running = ServerRecord.find(builtin.folder)
    assert running
    assert f"the built-in server (process {running.pid})" in lines[0]
    assert lines[-1].split()[:5] == ["digits", "1.0", "yes", "1/1", "ready"]
    (document,) = json.loads(torchmar("status", "--json", *where, cwd=tmp_path).stdout)
    assert (document["engine"], document["pid"], document["healthy"]) == ("builtin", running.pid, True)
    assert document["models"][0]["memory"] > 10_000_000
    everywhere = subprocess.run(
        [sys.executable, "-m", "torchmar", "status", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert [
        record["engine"] for record in json.loads(everywhere.stdout) if record["run_folder"] == str(builtin.folder)
    ] == ["builtin"]


def test_the_doctor_needs_no_java(builtin: Builtin, tmp_path: Path) -> None:
    where = ("--run-folder", builtin.folder, "--config", builtin.folder / "config.properties", "--json")
    assert "java" not in {finding["topic"] for finding in json.loads(torchmar("doctor", *where, cwd=tmp_path).stdout)}


def test_top_shows_its_load(builtin: Builtin, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torchmar", "top", "-i", "1", "--json", "--run-folder", str(builtin.folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    client = InferenceClient(builtin.server)
    while process.poll() is None:
        client.request("digits", exchange.read(SEVEN))
    assert process.stdout
    (model,) = json.loads(process.stdout.read())["models"]
    assert model["requests_per_second"] > 0
    assert model["mean_ms"] >= model["mean_wait_ms"] >= 0


def test_a_model_that_fails_is_reported_with_its_workers_traceback_and_not_registered(
    builtin: Builtin, make: Make
) -> None:
    code = "def handle(rows, context): raise ValueError('boom')"
    path = make(code, name="broken", store=builtin.model_store)
    with pytest.raises(ModelFailedError, match=r"broken 1\.0 did not start") as caught:
        builtin.load(path)
    assert caught.value.traceback.splitlines()[-1] == "ValueError: boom"
    assert "handler.py" in caught.value.traceback
    assert "broken" not in list(builtin.management.names())


def test_a_model_that_crash_loops_is_reported_with_its_traceback(builtin: Builtin, make: Make, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    config = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "maxBatchDelay": 1, "responseTimeout": 30}
    code = MOODY.format(marker=str(marker))
    builtin.load(make(code, name="prices", store=builtin.model_store, config=config))
    InferenceClient(builtin.server).request("prices", Request(b"x", "text/plain"))
    marker.touch()
    (worker,) = builtin.management.describe("prices")[0].workers
    psutil.Process(worker.pid).kill()
    until(lambda: ("prices", "1.0") in builtin.failures())
    ran = torchmar("status", "--run-folder", builtin.folder, cwd=tmp_path, code=1)
    assert "prices 1.0: 0 of 1 workers answer" in ran.stderr
    assert "ValueError: the table of prices is gone" in ran.stderr
    log_lines = torchmar("logs", "prices", "--run-folder", builtin.folder, cwd=tmp_path).stdout
    assert "a price was requested" in log_lines
    assert "the table of prices is gone" in log_lines
    marker.unlink()
    until(lambda: builtin.management.describe("prices")[0].ready == 1, 120)
    assert builtin.failures() == {}
    builtin.management.unregister("prices")


def test_a_port_in_use_is_reported_before_a_process_starts(builtin: Builtin, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    config = tmp_path / "config.properties"
    config.write_text(properties.show(builtin.properties.values))
    with (
        pytest.raises(BindError, match=f"is taken by the server of {builtin.folder} "),
        Builtin(config, tmp_path / "store", tmp_path / "run"),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_it_serves_at_unix_sockets_alone(tmp_path: Path, digits: Path) -> None:
    # Their paths may have 107 bytes, which pytest's own folders come close to.
    with tempfile.TemporaryDirectory() as folder:
        sockets = {f"{api}_address": f"unix:{folder}/{api}" for api in ("inference", "management", "metrics")}
        config = write_config(tmp_path, torchmar_access_log="true", **sockets)
        with Builtin(config, digits.parent, tmp_path / "run") as server:
            server.load(digits)
            with InferenceClient(server.server) as client:
                assert next(iter(client.predict("digits", SEVEN))) == "7"
                with pytest.raises(NotFoundError):
                    client.predict("missing", SEVEN)
            where = ("--run-folder", server.folder)
            output = torchmar("predict", "digits", SEVEN, *where, cwd=tmp_path).stdout
            assert "7" in output
            address = f"unix:{folder}/management"
            assert "digits" in torchmar("models", *where, "--address", address, cwd=tmp_path).stdout
            assert f"unix:{folder}/inference" in torchmar("status", *where, cwd=tmp_path).stdout
            load = torchmar("top", "-i", "1", "--json", *where, cwd=tmp_path).stdout
            assert json.loads(load)["models"][0]["name"] == "digits"
            taken = ("serve", "--config", config, "--model-store", digits.parent, "--run-folder", "other")
            assert "address already in use" in torchmar(*taken, cwd=tmp_path, code=1).stderr
        until(lambda: " - /unix " in (tmp_path / "run" / "logs" / "access.log").read_text())
        with pytest.raises(ConnectError, match="No such file"):
            InferenceClient(f"unix:{folder}/inference").ping()


def test_a_second_one_in_the_same_folder_is_rejected(builtin: Builtin, tmp_path: Path) -> None:
    with (
        pytest.raises(EngineError, match=r"runs in .* already"),
        Builtin(write_config(tmp_path), builtin.model_store, builtin.folder),
    ):
        pass


def test_a_rejected_configuration_is_reported_with_the_servers_output(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    config = write_config(tmp_path, job_queue_size="many")
    with (
        pytest.raises(EngineError, match="while starting") as caught,
        Builtin(config, tmp_path / "store", tmp_path / "r"),
    ):
        pass
    assert "job_queue_size" in caught.value.log
    assert "Traceback" not in caught.value.log


def test_serve_runs_it_without_java_until_it_is_stopped(tmp_path: Path, digits: Path) -> None:
    write_config(tmp_path)
    nowhere = {**os.environ, "JAVA_HOME": str(tmp_path / "none"), "PATH": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "torchmar",
        "serve",
        "--engine",
        "builtin",
        "--model-store",
        str(digits.parent),
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=nowhere, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline().strip().endswith(", built in")
        until(lambda: bool(ServerRecord.find(tmp_path / ".torchmar")))
        while "digits 1.0" not in (line := process.stdout.readline()):
            assert line
        torchmar("stop", cwd=tmp_path)
        assert process.wait(60) == 0
        assert process.stderr
        assert "the server was stopped" in process.stderr.read()
    finally:
        torchmar("stop", cwd=tmp_path)
        process.kill()
        process.communicate()


# It is the last test of this server, which it ends.
def test_it_stops_without_a_trace(builtin: Builtin) -> None:
    running = ServerRecord.find(builtin.folder)
    assert running
    server = psutil.Process(running.pid)
    processes = [server, *server.children(recursive=True)]
    assert len(processes) > 3  # server, supervisor, fork server, worker
    assert Path(running.temporary).exists()
    builtin.__exit__(None, None, None)
    assert not any(map(runs, processes))
    assert not Path(running.temporary).exists()
    left = {path.name for path in builtin.folder.rglob("*") if path.is_file()}
    assert left == {"console.log", "server.log", "workers.log"}
