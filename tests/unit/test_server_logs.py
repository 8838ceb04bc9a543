"""torchmar.server.telemetry.logs writes every log to its file, and never blocks the server."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.servers import ECHO, write_config
from tests.support.waiting import until
from torchmar import properties
from torchmar.engines import logs as reading
from torchmar.engines.builtin import Builtin
from torchmar.exchange import Request
from torchmar.inference import InferenceClient
from torchmar.server.http import Access
from torchmar.server.telemetry import logs
from torchmar.server.telemetry.logs import AccessLog, BackgroundWriter

Make = Callable[..., Path]
SLOW = """
import time

def handle(rows, context):
    if rows:
        print("requested")
        time.sleep(float(next(iter(rows[0].values()))))
    return ["done"] * len(rows or [])
"""


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    loggers = (logs.SERVER, logs.WORKERS)
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate


def write_logs(folder: Path, layout: logs.Layout) -> None:
    logs.open_in(folder / "logs", layout)
    logs.SERVER.warning("of %s", "m", extra={"model": "m", "version": "1.0", "request_id": "r"})
    try:
        raise ValueError("no")
    except ValueError:
        logs.SERVER.exception("it failed")
    logs.log_worker_output("9000", "m", "1.0", "Traceback (most recent call last):")
    logs.log_worker_output("9000", "m", "1.0", "ValueError: 100%")


@pytest.mark.parametrize("layout", ["text", "json"])
def test_both_layouts_are_read_by_the_log_commands(tmp_path: Path, layout: logs.Layout) -> None:
    write_logs(tmp_path, layout)
    (worker,) = reading.recent(tmp_path, 9, worker="9000")
    assert (worker.model, worker.version, worker.level) == ("m", "1.0", "")
    assert worker.text == "Traceback (most recent call last):\nValueError: 100%"
    server = [entry for entry in reading.recent(tmp_path, 9) if not entry.worker]
    assert [entry.level for entry in server] == ["WARNING", "ERROR"]
    assert server[0].text.endswith("of m")
    assert server[1].text.endswith("ValueError: no")
    assert datetime.fromisoformat(worker.time)
    assert abs((datetime.fromisoformat(worker.time) - datetime.now()).total_seconds()) < 60


def test_a_line_of_json_has_all_known_fields(tmp_path: Path) -> None:
    write_logs(tmp_path, "json")
    first, second = map(json.loads, (tmp_path / "logs" / "server.log").read_text().splitlines())
    assert datetime.fromisoformat(first.pop("time")).tzinfo
    about = {"model": "m", "version": "1.0", "request_id": "r"}
    assert first == {"level": "WARNING", "logger": "torchmar.server", "message": "of m", **about}
    assert second["message"].startswith("it failed\nTraceback")
    line = json.loads((tmp_path / "logs" / "workers.log").read_text().splitlines()[1])
    assert (line["logger"], line["worker"], line["message"]) == ("torchmar.workers", "9000", "ValueError: 100%")


def test_a_slow_pipe_drops_lines_and_logs_their_number(tmp_path: Path) -> None:
    messages: list[str] = []

    class Telling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logs.SERVER.handlers = [Telling()]
    free, taken = threading.Event(), list[int]()

    def write(some: Any) -> None:
        free.wait()
        taken.extend(some)

    background = BackgroundWriter("the pipe", write, capacity=3)
    for number in range(3):
        background.put(number)
    until(lambda: not background._waiting)
    for number in range(3, 10):
        background.put(number)
    assert background.dropped == 4
    free.set()
    until(lambda: bool(messages))
    assert messages == ["the pipe cannot keep up: 4 lines are missing"]
    background.close()
    assert taken == [0, 1, 2, 3, 4, 5]


def test_a_disk_that_is_full_is_no_end(tmp_path: Path) -> None:
    def write(some: Any) -> None:
        raise OSError("full")

    background = BackgroundWriter("the disk", write)
    background.put(1)
    background.close()
    assert background.dropped == 1


def test_no_request_can_break_a_line_and_no_query_is_written(tmp_path: Path) -> None:
    for layout in ("text", "json"):
        log = AccessLog(tmp_path / layout, layout)
        log.put(Access(0.0, "127.0.0.1:1", "GET", b'/a"b\xff\x1b%41?token=secret', 200, 0.0015, "id"))
        log.close()
    text = (tmp_path / "text" / "access.log").read_text()
    assert re.fullmatch(r'\S+ - /127\.0\.0\.1:1 "GET /a%22b%FF%1B%41 HTTP/1\.1" 200 1\.500 id\n', text)
    document = json.loads((tmp_path / "json" / "access.log").read_text())
    assert (document["path"], document["milliseconds"], document["request_id"]) == ("/a%22b%FF%1B%41", 1.5, "id")


def test_the_access_log_rolls_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_SIZE", 10)
    log = AccessLog(tmp_path)
    log.put(Access(0.0, "c", "GET", b"/1", 200, 0.0, ""))
    until(lambda: (tmp_path / "access.log.1").exists())
    log.put(Access(0.0, "c", "GET", b"/2", 200, 0.0, ""))
    log.close()
    assert "GET /1 " in (tmp_path / "access.log.2").read_text()
    assert "GET /2 " in (tmp_path / "access.log.1").read_text()


@pytest.mark.server
def test_every_request_of_every_api_has_a_line_if_the_access_log_is_on(tmp_path: Path, make: Make) -> None:
    store = tmp_path / "store"
    archive = make(SLOW, name="m", store=store, config={"minWorkers": 1, "maxWorkers": 1, "responseTimeout": 30})
    config = write_config(tmp_path, torchmar_access_log="true", torchmar_log_format="json")
    with Builtin(config, store, tmp_path / "run") as server:
        server.load(archive)
        with InferenceClient(server.server) as client:
            answer = client.request("m", Request(b"0.05", "text/plain"))
        inference, _, metrics = server.properties.addresses()[:3]
        url = f"http://{inference.host}:{inference.port}/predictions/none?token=secret"
        assert requests.get(url).status_code == 400
        assert requests.get(f"http://{metrics.host}:{metrics.port}/metrics").ok
        token = json.loads((server.folder / "key_file.json").read_text())["inference"]["key"]
        head = f"POST /predictions/m HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
        with socket.create_connection((inference.host, inference.port)) as leaving:
            leaving.sendall(f"{head}content-type: application/json\r\ncontent-length: 3\r\n\r\n2.0".encode())
            file = server.folder / "logs" / "workers.log"
            until(lambda: file.read_text().count('"requested"') == 2)
        with socket.create_connection((inference.host, inference.port)) as large, contextlib.suppress(OSError):
            large.sendall(f"{head}content-length: 99999999999\r\n\r\n".encode())
            large.recv(1000)

        def lines() -> list[dict[str, Any]]:
            return [json.loads(line) for line in (server.folder / "logs" / "access.log").read_text().splitlines()]

        def statuses(path: str) -> list[int]:
            return [line["status"] for line in lines() if line["path"] == path]

        until(lambda: statuses("/predictions/m") == [200, 499, 413])
        (answered, _gone, _) = [line for line in lines() if line["path"] == "/predictions/m"]
        assert answered["request_id"] == answer.headers["x-request-id"]
        assert (answered["method"], answered["client"].partition(":")[0]) == ("POST", "127.0.0.1")
        assert answered["milliseconds"] >= 50
        assert statuses("/predictions/none") == [400]
        assert statuses("/metrics") == [200]
        assert statuses("/models") == [200]
        assert "secret" not in (server.folder / "logs" / "access.log").read_text()
        traceback = server.worker_traceback("m", "1.0")
        assert "requested" in traceback  # the last lines, since there is none: they are read from JSON, too


@pytest.mark.server
def test_the_access_log_is_off_by_default(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with Builtin(write_config(tmp_path), tmp_path / "store", tmp_path / "run") as server:
        InferenceClient(server.server).ping()
        assert not (server.folder / "logs" / "access.log").exists()


@pytest.mark.server
@pytest.mark.parametrize("layout", ["text", "json"])
def test_in_the_foreground_it_prints_its_logs_to_stderr(tmp_path: Path, make: Make, layout: str) -> None:
    store = tmp_path / "store"
    make(f"import no_such_module\n{ECHO}", name="broken", store=store)
    config = write_config(
        tmp_path, model_store=str(store), load_models="all", torchmar_log_format=layout, vmargs="-Xmx1g"
    )
    command = [sys.executable, "-m", "torchmar.server", "-f", str(config), "--foreground"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    guard = threading.Timer(60, process.kill)
    guard.start()
    try:
        assert process.stderr
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "no_such_module" in line:
                break
        process.terminate()
        assert process.wait(60) == 0
        seen += process.stderr.readlines()
    finally:
        guard.cancel()
        process.kill()
        process.communicate()
    assert any("without meaning here: vmargs" in line for line in seen)
    assert not any("workflow_store" in line for line in seen)
    if layout == "json":
        records = [json.loads(line) for line in seen]
        assert {(record["model"], record["version"]) for record in records if "worker" in record} == {("broken", "1.0")}


@pytest.mark.server
def test_a_pipe_without_a_reader_does_not_stop_the_server(tmp_path: Path, make: Make) -> None:
    store = tmp_path / "store"
    chatty = "def handle(rows, context):\n    if rows: print('x' * 60000)\n    return ['x'] * len(rows or [])\n"
    make(chatty, name="m", store=store, config={"minWorkers": 1, "maxWorkers": 1})
    config = write_config(tmp_path, model_store=str(store), load_models="all", disable_token_authorization="true")
    url = properties.read(config).url("inference_address")
    read, write = os.pipe()
    command = [sys.executable, "-m", "torchmar.server", "-f", str(config), "--foreground"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=write)
    os.close(write)
    try:

        def answers() -> bool:
            with contextlib.suppress(requests.ConnectionError):
                return requests.post(f"{url}/predictions/m", data="x").ok
            return False

        until(answers)
        assert all(answers() for _ in range(50))  # three megabytes, and a pipe holds 64 KiB
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
        os.close(read)
