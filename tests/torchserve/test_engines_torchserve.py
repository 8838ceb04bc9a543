"""torchmar.engines.torchserve runs the real server, reports models that fail and leaves no process behind."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from tests.support.command import torchmar
from tests.support.families import PARENT, all_end, descendants, family
from tests.support.paths import DIGITS, SAMPLES
from tests.support.preloaded import unforked
from tests.support.processes import kill_worker
from tests.support.servers import write_config
from torchmar import archive, exchange, properties, recipe
from torchmar.archive import store
from torchmar.engines import worker_log
from torchmar.engines.server_records import ServerRecord
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import BindError, EngineError, ModelFailedError, ServerError
from torchmar.exchange import Request, Response
from torchmar.inference import InferenceClient
from torchmar.worker import Worker

Make = Callable[..., Path]
PNG = (SAMPLES / "seven.png").read_bytes()


def waited_for(what: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(scope="module")
def patient(server: TorchServe) -> Iterator[str]:
    """Register the digits with batches of eight and a delay that only a full batch cuts short; yield the version."""
    written, folder = recipe.read(DIGITS)
    config = written.config.model_copy(update={"batchSize": 8, "maxBatchDelay": 60_000, "responseTimeout": 120})
    written = written.model_copy(update={"config": config, "version": "8.0", "samples": []})
    path = archive.pack(archive.collect_members(written, folder), server.model_store / "digits-8.0.mar").path
    server.management.register(path.name)
    yield "8.0"
    server.management.unregister("digits", "8.0")


def test_one_batch_of_eight_answers_each_request_for_itself(server: TorchServe, patient: str) -> None:
    base64_json = json.dumps({"data": base64.b64encode(PNG).decode()}).encode()
    three = (SAMPLES / "three.png").read_bytes()
    requests = [
        Request(PNG, "image/png"),
        Request(PNG[:300], "image/png"),
        Request(b"", "image/png"),
        Request(three, "image/png", explain=True),
        Request(base64_json, "application/json"),
        Request(b"a seven, please", "text/plain"),
        Request(three, "image/png"),
        Request((SAMPLES / "zero.png").read_bytes()),
    ]

    def ask(request: Request) -> Response | ServerError:
        # A batch that does not fill would wait for a minute: the client would not.
        with contextlib.suppress(ValueError):
            try:
                return InferenceClient(server.server, timeout=40).request("digits", request, patient)
            except ServerError as refusal:
                return refusal
        raise AssertionError

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, requests))
    errors = {index: answer for index, answer in enumerate(answers) if isinstance(answer, ServerError)}
    assert {index: (error.status, error.type) for index, error in errors.items()} == {
        1: (400, "BadRequestException"),
        2: (400, "BadRequestException"),
        5: (400, "BadRequestException"),
    }
    assert "damaged" in errors[1].message
    assert "empty" in errors[2].message
    assert "not base64" in errors[5].message
    documents = {index: json.loads(answer.body) for index, answer in enumerate(answers) if isinstance(answer, Response)}
    assert [next(iter(documents[index])) for index in (0, 4, 6, 7)] == ["7", "7", "3", "0"]
    assert (documents[3]["label"], documents[3]["shape"]) == ("3", [1, 32, 32])
    logs = [file.read_text() for file in (server.folder / "logs").iterdir()]
    assert not any("Traceback" in log for log in logs)


def test_the_server_and_a_worker_without_a_server_give_the_same_answers(
    server: TorchServe, client: InferenceClient
) -> None:
    requests = [
        exchange.read(SAMPLES / "four.png"),
        exchange.read(SAMPLES / "four.png", explain=True),
        exchange.read(SAMPLES / "four.png", explain=True, accept="image/png"),
        exchange.read(SAMPLES.parent / "archive.yaml"),
    ]
    with Worker(server.model_store / "digits-1.0.mar") as worker:
        for request in requests:
            alone = worker.predict_batch([request])[0]
            try:
                served = client.request("digits", request)
                assert (served.status, served.content_type) == (alone.status, alone.content_type)
                assert served.body == alone.body
            except ServerError as refusal:
                assert refusal.status == alone.status
                assert refusal.message == json.loads(alone.body)["message"]


def test_a_whole_batch_that_fails_has_the_body_that_the_worker_predicts(
    server: TorchServe, client: InferenceClient, make: Make
) -> None:
    code = "def handle(rows, context):\n    if rows is not None: raise {}"
    for name, raised in {"fails": "ValueError('x')", "full": "MemoryError()"}.items():
        path = make(code.format(raised), name=name, store=server.model_store)
        server.load(path)
        with Worker(path) as worker:
            alone = worker.predict_batch([Request(b"x")])[0]
        with pytest.raises(ServerError) as caught:
            client.request(name, Request(b"x"))
        document = json.loads(alone.body)
        assert (caught.value.status, caught.value.type, caught.value.message) == (
            alone.status,
            document["type"],
            document["message"],
        )
        server.management.unregister(name)
        path.unlink()


def test_a_killed_worker_is_restarted_and_the_next_request_is_answered(
    server: TorchServe, client: InferenceClient
) -> None:
    (worker,) = server.management.describe("digits")[0].workers
    assert kill_worker(worker.pid)

    def replaced() -> bool:
        (now,) = server.management.describe("digits")[0].workers
        return now.status == "READY" and now.pid not in (worker.pid, -1)

    assert waited_for(replaced)
    assert client.request("digits", Request(PNG)).status == 200


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module\nclass H: ...", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("class H:\n    def initialize(self, c): raise ValueError('boom')\n    handle = None", "ValueError: boom"),
    ],
)
def test_a_model_that_fails_is_reported_with_its_workers_traceback_and_not_registered(
    server: TorchServe, make: Make, code: str, message: str
) -> None:
    path = make(code, name="broken", store=server.model_store)
    with pytest.raises(ModelFailedError, match=r"broken 1\.0 did not start") as caught:
        server.load(path)
    assert message in caught.value.traceback.splitlines()[-1]
    assert "handler.py" in caught.value.traceback
    assert "broken" not in list(server.management.names())
    path.unlink()


def test_a_newer_version_becomes_the_default_and_an_older_one_does_not(
    server: TorchServe, client: InferenceClient, make: Make
) -> None:
    for version in ("1.9", "1.10", "1.2"):
        server.load(make(name="versions", version=version, store=server.model_store, config={"v": {"is": version}}))
    assert server.management.describe("versions")[0].version == "1.10"
    for version in ("1.2", "1.9", "1.10"):
        server.management.unregister("versions", version)


def test_folders_and_tars_are_served_like_archives(server: TorchServe, client: InferenceClient, digits: Path) -> None:
    written, folder = recipe.read(DIGITS)
    for version in ("3.0", "4.0"):
        members = archive.collect_members(written.model_copy(update={"version": version}), folder)
        if version == "3.0":
            path = archive.pack_folder(members, server.model_store / "digits-3.0").path
        else:
            path = archive.pack_tgz(members, server.model_store / "digits-4.0.tar.gz", "digits").path
        assert path in store.find(server.model_store, ["digits"])
        server.load(path)
        assert client.request("digits", Request(PNG), version).status == 200
    server.management.set_default("digits", "1.0")
    for version in ("3.0", "4.0"):
        server.management.unregister("digits", version)


def test_the_server_is_closed_to_others(server: TorchServe) -> None:
    values = properties.read(server.folder / "config.properties").values
    assert values["allowed_urls"] == f"file://{server.model_store}/.*"
    with pytest.raises(ServerError, match="does not match any allowed URL"):
        server.management.register("https://example.com/x.mar")
    key_file = server.server.key_file
    assert key_file
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    listening = {
        (conn.laddr.ip, conn.laddr.port)
        for conn in psutil.Process(ServerRecord.find(server.folder).pid).net_connections()  # type: ignore[union-attr]
        if conn.status == psutil.CONN_LISTEN
    }
    assert {ip.removeprefix("::ffff:") for ip, _ in listening} == {"127.0.0.1"}


def test_a_port_in_use_is_reported_before_a_process_starts(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "store").mkdir()
    before = descendants()
    for address in properties.read(config).addresses():
        with (
            socket.create_server((address.host, address.port)),
            pytest.raises(BindError) as caught,
            TorchServe(config, tmp_path / "store", tmp_path / "run"),
        ):
            pass
        assert address.key in caught.value.message
        assert str(address.port) in caught.value.message
    assert descendants() <= before
    assert not (tmp_path / "run").exists()


def test_a_rejected_configuration_is_reported_with_the_servers_output(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    config = write_config(tmp_path, vmargs="-XX:NoSuchOption")
    with pytest.raises(EngineError) as caught, TorchServe(config, tmp_path / "store", tmp_path / "run"):
        pass
    assert "while starting" in caught.value.message
    assert "NoSuchOption" in caught.value.log


def test_two_servers_run_side_by_side_and_stop_without_a_trace(tmp_path: Path, make: Make) -> None:
    mar = make()
    before = descendants()
    with contextlib.ExitStack() as stack:
        servers = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            config = write_config(tmp_path / name)
            # The processes of the first are looked at.
            with unforked() if name == "one" else contextlib.nullcontext():
                servers.append(stack.enter_context(TorchServe(config, mar.parent, tmp_path / name / "run")))
        for server in servers:
            server.load(mar)
        for server in servers:
            assert InferenceClient(server.server).request("made", Request(b"x", "text/plain")).status == 200
        status = torchmar("status", "--json", "--run-folder", servers[0].folder, cwd=tmp_path).stdout
        (document,) = json.loads(status)
        # Java and torch, in a worker of its own.
        assert document["memory"] > document["models"][0]["memory"] > 50_000_000
        with (
            pytest.raises(EngineError, match=r"runs in .* already"),
            TorchServe(write_config(tmp_path), mar.parent, tmp_path / "one" / "run"),
        ):
            pass
        temporary = [ServerRecord.find(server.folder).temporary for server in servers]  # type: ignore[union-attr]
        assert all(Path(folder).exists() for folder in temporary)
    assert descendants() <= before
    assert not any(Path(folder).exists() for folder in temporary)
    assert sorted(path.name for path in (tmp_path / "one" / "run").iterdir()) == ["console.log", "logs"]


@pytest.mark.unforked
def test_processes_of_a_killed_server_are_found_by_their_environment_and_ended(tmp_path: Path, make: Make) -> None:
    mar = make(dedent(PARENT), name="parent", config={"minWorkers": 1, "maxWorkers": 1, "responseTimeout": 60})
    with TorchServe(write_config(tmp_path), mar.parent, tmp_path / "run") as server:
        server.load(mar)
        answer = InferenceClient(server.server, timeout=60).request("parent", Request(b"x", "text/plain"))
        worker, child, bare, daemon = family(answer.body)
        running = ServerRecord.find(server.folder)
        assert running
        os.kill(running.pid, signal.SIGKILL)
        server._process.wait()
        dead = ServerRecord.killed(server.folder)
        assert dead
        dead.stop()
        assert all_end([worker, child, daemon])
        bare.kill()  # a daemon without the server's variables is not known


LOG = """\
2026-11-20T10:00:00,000 W-9000-m_1.0-stdout - Torch worker started.
2026-11-20T10:00:00,000 W-9000-m_1.0-stdout - Backend worker process died.
2026-11-20T10:00:00,000 W-9000-m_1.0-stdout - Traceback (most recent call last):
2026-11-20T10:00:00,000 W-9001-m_10-stdout - Traceback (most recent call last):
2026-11-20T10:00:00,000 W-9001-m_10-stdout - OtherModel: not mine
2026-11-20T10:00:00,000 W-9000-m_1.0-stdout -   File "h.py", line 1
2026-11-20T10:00:00,000 W-9000-m_1.0-stdout - ValueError: mine
"""


def test_the_traceback_of_a_model_is_separated_from_others() -> None:
    assert worker_log.last_traceback(LOG, "m", "1.0").splitlines()[1:] == ['  File "h.py", line 1', "ValueError: mine"]
    assert worker_log.last_traceback(LOG, "m", "2.0") == ""
