"""The built-in server as a whole: it loses no request, leaves no process or file, and survives bad clients."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.support.packing import pack_handler
from tests.support.processes import kill_worker
from tests.support.servers import write_config
from torchmar.engines.builtin import Builtin
from torchmar.engines.server_records import ServerRecord
from torchmar.errors import ServerError, TorchmarError
from torchmar.exchange import Request
from torchmar.inference import InferenceClient

Make = Callable[..., Path]
ROUNDS = int(os.environ.get("TORCHMAR_SOAK", "8"))

pytestmark = pytest.mark.unforked

OBEDIENT = """
import os, time

def handle(rows, context):
    if rows is None:
        return None
    answers = []
    for row in rows:
        what = row["body"]
        if what == "die":
            os._exit(3)
        if what == "hang":
            time.sleep(600)
        if what == "raise":
            raise ValueError("on request")
        if isinstance(what, float):
            time.sleep(what)
        answers.append({"value": what})
    return answers
"""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Builtin]:
    """Run a server with a model that does what requests name."""
    store = folder / "model_store"
    config = {"minWorkers": 2, "maxWorkers": 2, "batchSize": 4, "responseTimeout": 3}
    archive = pack_handler(store, OBEDIENT, name="m", config=config)
    with Builtin(write_config(folder, max_request_size="100000"), store, folder / "run") as running:
        running.load(archive)
        yield running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Builtin]:
    """Run a server that a test ends."""
    with serving(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builtin]:
    """Run a server that outlives what tests do to it, but for the last one."""
    with serving(tmp_path_factory.mktemp("lasting")) as running:
        yield running


def request_of(what: object) -> Request:
    return Request(json.dumps(what).encode(), "application/json")


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def pid(server: Builtin) -> int:
    running = ServerRecord.find(server.folder)
    assert running
    return running.pid


def test_a_killed_server_leaves_no_process(server: Builtin) -> None:
    everybody = family(pid(server))
    assert len(everybody) >= 4  # server, fork_server, two workers
    os.kill(pid(server), signal.SIGKILL)
    _, alive = psutil.wait_procs(everybody, timeout=20)
    assert alive == []


def test_a_parent_of_the_workers_that_is_killed_under_load_is_replaced(lasting: Builtin) -> None:
    outcomes: Counter[str] = Counter()
    ended = threading.Event()

    def parent() -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for supervisor in psutil.Process(pid(lasting)).children():
                for child in supervisor.children():
                    return child
        return None

    def client(number: int) -> None:
        with InferenceClient(lasting.server, timeout=60, retries=0) as client:
            while not ended.is_set():
                try:
                    answer = json.loads(client.request("m", request_of(number)).body)
                    outcomes["right" if answer == {"value": number} else "wrong"] += 1
                except ServerError as refusal:
                    outcomes[f"{refusal.status} {refusal.message[:40]}"] += 1
                except TorchmarError as error:
                    outcomes[type(error).__name__] += 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in clients:
        thread.start()
    while outcomes["right"] < 50 or lasting.management.describe("m")[0].ready < 2:
        time.sleep(0.05)
    old = parent()
    assert old
    old.kill()
    while parent() in (None, old):
        time.sleep(0.05)
    outcomes["right"] = 0
    while outcomes["right"] < 50:
        time.sleep(0.05)
    ended.set()
    for thread in clients:
        thread.join()
    # The only request at a worker that dies fails at once; requests in the queue are answered.
    assert set(outcomes) <= {"right", "500 Worker died."}, outcomes
    assert outcomes["500 Worker died."] <= 2
    log = (lasting.folder / "logs" / "server.log").read_text()
    assert f"the fork server (process {old.pid}) has ended by signal 9; it is restarted" in log


def test_faults_of_clients_and_models_cause_no_hang_no_leak_and_no_other_failure(lasting: Builtin, make: Make) -> None:
    """A bounded soak test: kills, hangs, slow and disconnecting clients, invalid input, models added and removed."""
    drawn, ended = random.Random(11), threading.Event()
    outcomes: Counter[str] = Counter()
    other = make("def handle(rows, context): return rows and ['x'] * len(rows)", name="o", store=lasting.model_store)
    host, port = "127.0.0.1", lasting.properties.addresses()[0].port
    token = json.loads((lasting.folder / "key_file.json").read_text())["inference"]["key"]
    head = f"POST /predictions/m HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n".encode()

    def innocent(number: int) -> None:
        with InferenceClient(lasting.server, timeout=30, retries=0) as client:
            while not ended.wait(0.1):  # several seconds, most of them while a model hangs
                try:
                    answer = json.loads(client.request("m", request_of(number)).body)
                    outcomes["right" if answer == {"value": number} else "wrong"] += 1
                except ServerError as refusal:
                    outcomes[f"{refusal.status} {refusal.message[:40]}"] += 1
                except TorchmarError as error:
                    outcomes[type(error).__name__] += 1

    def evil() -> None:
        with InferenceClient(lasting.server, timeout=30, retries=0) as client, contextlib.suppress(TorchmarError):
            client.request("m", request_of(drawn.choice(["die", "raise", "raise", "hang"])))

    def oversize() -> None:
        url = f"http://{host}:{port}/predictions/m"
        with contextlib.suppress(requests.ConnectionError):  # it need not read what it does not want
            answer = requests.post(url, data=b"x" * 200_000, headers={"authorization": f"Bearer {token}"}, timeout=20)
            assert answer.status_code == 413

    def vanish() -> None:
        with socket.create_connection((host, port)) as connection:
            connection.sendall(head + b"content-length: 3\r\n\r\n0.2")

    def dawdle() -> None:
        with socket.create_connection((host, port)) as connection:
            connection.sendall(head + b"content-length: 30\r\n\r\n1")
            time.sleep(0.2)

    def babble() -> None:
        nonsense = drawn.choice(
            [b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", head + b"content-length: x\r\n\r\n"]
        )
        with socket.create_connection((host, port)) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(nonsense)
            connection.settimeout(20)
            connection.recv(1000)

    def kill() -> None:
        worker = drawn.choice(lasting.management.describe("m")[0].workers)
        kill_worker(worker.pid)

    def come_and_go() -> None:
        lasting.management.register(other.name, initial_workers=1)
        assert InferenceClient(lasting.server).request("o", request_of(1)).body == b"x"
        lasting.management.unregister("o")

    innocents = [threading.Thread(target=innocent, args=(number,)) for number in range(6)]
    for thread in innocents:
        thread.start()
    before = None
    for round_ in range(ROUNDS):
        for what in drawn.sample([evil, evil, oversize, vanish, vanish, dawdle, babble, babble, kill, come_and_go], 10):
            what()
        while lasting.management.describe("m")[0].ready < 2:
            time.sleep(0.05)
        process = psutil.Process(pid(lasting))
        state = process.num_fds(), len(process.children(recursive=True))
        if round_ == ROUNDS // 2:
            before = state, process.memory_info().rss
    ended.set()
    for thread in innocents:
        thread.join()
    assert outcomes.pop("right") > 100
    # The only request at a worker that is killed fails at once.
    assert set(outcomes) <= {"500 Worker died."}, outcomes
    assert outcomes.total() <= 2 * ROUNDS
    assert before
    (files, children), memory = before
    assert state[0] <= files + 8
    assert state[1] <= children + 4  # a model process or a worker, with its supervisor each, may be on their way
    assert psutil.Process(pid(lasting)).memory_info().rss < memory + (50 << 20)


# It is the last test of this server, which it ends.
def test_a_server_answers_the_requests_it_has_before_it_stops(lasting: Builtin) -> None:
    everybody, statuses = family(pid(lasting)), []
    process, port = everybody[0], lasting.properties.addresses()[0].port

    def ask() -> None:
        statuses.append(InferenceClient(lasting.server, timeout=30).request("m", request_of(0.4)).status)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    # Three requests have reached the server: a connection for each is open.
    while sum(each.laddr.port == port and bool(each.raddr) for each in process.net_connections()) < 3:
        time.sleep(0.02)
    process.terminate()
    for thread in threads:
        thread.join()
    assert statuses == [200, 200, 200]
    _, alive = psutil.wait_procs(everybody, timeout=20)
    assert alive == []
