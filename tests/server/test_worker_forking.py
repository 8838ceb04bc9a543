"""torchmar.worker.process.forking: workers share nothing that a handler made, unless that changes no answer."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import random
import re
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.processes import forked_by
from tests.support.servers import write_config
from torchmar.engines.builtin import Builtin
from torchmar.worker import START
from torchmar.worker.process import forking

pytestmark = pytest.mark.unforked

Make = Callable[..., Path]
_CLIENTS = 8
#: Of each test. Where forks share the open file or the name of the scratch file, 59 and 118 of their answers are wrong.
_REQUESTS, _WORKERS = 400, 4
_HANDLE = "    def handle(self, data, context):\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builtin]:
    folder = tmp_path_factory.mktemp("forking")
    (folder / "store").mkdir()
    with Builtin(write_config(folder), folder / "store", folder / "run") as server:
        yield server


def ask(server: Builtin, name: str, requests: Sequence[Any]) -> list[Any]:
    """Return the answers to requests that several clients send at once, in their order; a failure is its status."""
    address = server.server.inference.removeprefix("http://")
    headers = {"Content-Type": "application/json"}
    if server.server.key_file:
        headers["Authorization"] = f"Bearer {json.loads(server.server.key_file.read_text())['inference']['key']}"
    answers: list[Any] = [None] * len(requests)

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(address, timeout=120)
        for index in range(number, len(requests), _CLIENTS):
            connection.request("POST", f"/predictions/{name}", json.dumps(requests[index]), headers)
            response = connection.getresponse()
            body = response.read()
            answers[index] = json.loads(body) if response.status == 200 else response.status
        connection.close()

    threads = [threading.Thread(target=client, args=[number]) for number in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.fixture
def serve(running: Builtin, make: Make) -> Iterator[Callable[..., Builtin]]:
    """Return a function that registers a handler with so many workers."""
    names: list[str] = []

    def register(name: str, code: str, workers: int, **more: Any) -> Builtin:
        # A worker that answers at once would answer all requests, and leave none to the others.
        code = "import time\n" + code.replace(_HANDLE, _HANDLE + "        time.sleep(0.002)\n")
        path = make(code, name=name, store=running.model_store, **more)
        running.management.register(path.name, initial_workers=workers)
        names.append(name)
        return running

    yield register
    for name in names:
        running.management.unregister(name)


def tables() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{f"t{n}": np.full(20_000, n, dtype=np.float64) for n in range(8)})
    return stream.getvalue()


NPZ = """
import os
import numpy as np

class Scaler:
    def initialize(self, context):
        self.tables = np.load(os.path.join(context.system_properties["model_dir"], "tables.npz"))

    def handle(self, data, context):
        rows = [self.tables[row["body"]["table"]] for row in data]
        return [{"first": float(row[0]), "last": float(row[-1]), "pid": os.getpid()} for row in rows]
"""

ROWS = """
import os

class Rows:
    def initialize(self, context):
        self.file = open(os.path.join(context.system_properties["model_dir"], "rows.txt"), "rb", buffering=0)

    def handle(self, data, context):
        answers = []
        for row in data:
            self.file.seek(8 * row["body"]["n"])
            sum(range(20_000))
            answers.append({"row": int(self.file.read(8)), "pid": os.getpid()})
        return answers
"""

SCRATCH = """
import os, tempfile, uuid

class Scratch:
    def initialize(self, context):
        self.path = os.path.join(tempfile.gettempdir(), f"in-{uuid.uuid4().hex}.txt")

    def handle(self, data, context):
        answers = []
        for row in data:
            with open(self.path, "w") as file:
                file.write(str(row["body"]["n"]))
            sum(range(20_000))
            with open(self.path) as file:
                answers.append({"n": int(file.read()), "pid": os.getpid()})
        return answers
"""

DATABASE = """
import os, sqlite3, tempfile

class Database:
    def initialize(self, context):
        self.folder = tempfile.TemporaryDirectory()
        self.database = sqlite3.connect(os.path.join(self.folder.name, "requests.db"))
        self.database.execute("CREATE TABLE requests (n INTEGER)")

    def handle(self, data, context):
        answers = []
        for row in data:
            with self.database:
                self.database.execute("INSERT INTO requests VALUES (?)", [row["body"]["n"]])
                found = self.database.execute("SELECT n FROM requests").fetchall()
                self.database.execute("DELETE FROM requests")
            answers.append({"n": [one for one, in found], "pid": os.getpid()})
        return answers
"""

RANDOM = """
import os, random, uuid
import numpy as np
import torch

class Random:
    def initialize(self, context):
        self.generator, self.random, self.name = np.random.default_rng(), random.Random(), uuid.uuid4().hex

    def handle(self, data, context):
        drawn = [self.generator.random(), self.random.random(), random.random(), np.random.random(), self.name]
        drawn += [torch.rand(1).item()]
        return [{"drawn": drawn, "pid": os.getpid()} for _ in data]
"""


@pytest.mark.parametrize("name", ["npz", "rows"])
def test_an_open_file_is_read_by_one_worker_alone(serve: Callable[..., Builtin], name: str) -> None:
    if name == "npz":
        disk: dict[str, Any] = {"tables.npz": tables()}
        inputs: list[Any] = [{"table": f"t{n % 8}"} for n in range(_REQUESTS)]
        right: list[Any] = [(n % 8, n % 8) for n in range(_REQUESTS)]
        code, fields = NPZ, ("first", "last")
    else:
        disk = {"rows.txt": "".join(f"{n:07}\n" for n in range(1000))}
        inputs = [{"n": n % 1000} for n in range(_REQUESTS)]
        right = [(n % 1000,) for n in range(_REQUESTS)]
        code, fields = ROWS, ("row",)
    server = serve(name, code, _WORKERS, disk=disk, files={file: file for file in disk})
    answers = ask(server, name, inputs)
    assert [isinstance(answer, dict) and tuple(answer[field] for field in fields) for answer in answers] == right
    assert len({answer["pid"] for answer in answers}) == _WORKERS


def test_a_scratch_file_is_of_one_worker_alone(serve: Callable[..., Builtin]) -> None:
    server = serve("scratch", SCRATCH, _WORKERS)
    answers = ask(server, "scratch", [{"n": n} for n in range(_REQUESTS)])
    assert [isinstance(answer, dict) and answer["n"] for answer in answers] == list(range(_REQUESTS))
    assert len({answer["pid"] for answer in answers}) == _WORKERS


def test_a_database_in_a_temporary_folder_is_of_one_worker_alone(serve: Callable[..., Builtin]) -> None:
    server = serve("database", DATABASE, _WORKERS)
    answers = ask(server, "database", [{"n": n} for n in range(_REQUESTS)])
    assert [isinstance(answer, dict) and answer["n"] for answer in answers] == [[n] for n in range(_REQUESTS)]
    assert len({answer["pid"] for answer in answers}) == _WORKERS


def test_random_numbers_differ_between_workers(serve: Callable[..., Builtin]) -> None:
    server = serve("random", RANDOM, 4)
    answers = ask(server, "random", [{}] * 64)
    assert len({answer["pid"] for answer in answers}) > 1
    columns = list(zip(*(answer["drawn"] for answer in answers), strict=True))
    names = columns.pop(4)
    assert len(set(names)) == len({answer["pid"] for answer in answers})
    assert [len(set(column)) for column in columns] == [64] * len(columns)


SEEDED = """
import torch

class Seeded:
    def initialize(self, context):
        torch.manual_seed(7)

    def handle(self, data, context):
        return [torch.rand(1).item() for _ in data]
"""


def test_a_generator_that_the_handler_has_seeded_is_left_as_it_is(serve: Callable[..., Builtin]) -> None:
    server = serve("seeded", SEEDED, 2)
    answers = ask(server, "seeded", [{}] * 2)
    generator = torch.Generator().manual_seed(7)
    assert set(answers) <= {torch.rand(1, generator=generator).item() for _ in range(2)}


def test_random_numbers_of_forks_differ_too_but_for_generators_of_the_handler(serve: Callable[..., Builtin]) -> None:
    server = serve("forked", RANDOM, 4, config={"responseTimeout": 60, "torchmar": {"fork": True}})
    answers = ask(server, "forked", [{}] * 64)
    columns = list(zip(*(answer["drawn"] for answer in answers), strict=True))
    assert [len(set(columns[number])) for number in (2, 3, 5)] == [64] * 3


def test_which_handlers_are_known() -> None:
    known = ["image_classifier", "text_classifier", "torchmar_handlers.image_classifier"]
    assert {forking.mode(handler, model_file=False, allowed=None)[0] for handler in known} == {forking.KNOWN}
    assert {forking.mode(handler, model_file=True, allowed=None)[0] for handler in known} == {forking.NEVER}
    assert {forking.mode(handler, model_file=False, allowed=False)[0] for handler in known} == {forking.NEVER}
    assert forking.mode("handler:handle", model_file=False, allowed=None)[0] == forking.NEVER
    assert forking.mode("handler:handle", model_file=True, allowed=True)[0] == forking.ALLOWED


def test_objects_that_forks_must_not_share_are_found_everywhere(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(sqlite3.connect(":memory:")) as database:
        unshareable = [np.random.default_rng(), np.random.RandomState(0), random.Random(), torch.Generator(), database]
        model = torch.nn.Sequential(torch.nn.Linear(1, 1))
        model[0].options = {"a": [folder, np.zeros(1), tmp_path, threading.Lock()]}
        assert forking.held([model]) == ""
        for value in unshareable:
            model[0].options = {"a": [(value,)]}
            assert forking.held(model.forward).rpartition(".")[2] == type(value).__qualname__


WHO = "import os\ndef handle(rows, context):\n    return rows and [os.getpid()] * len(rows)\n"


@pytest.mark.parametrize("fork", [True, False, None])
def test_the_archive_sets_whether_its_workers_are_forks_and_the_log_has_the_reason(
    serve: Callable[..., Builtin], fork: bool | None
) -> None:
    name = f"fork-{fork}"
    config: dict[str, Any] = {"responseTimeout": 60}
    if fork is not None:
        config["torchmar"] = {"fork": fork}
    server = serve(name, WHO, 2, config=config)
    answers = ask(server, name, [{}] * 16)
    (parent,) = {forked_by(pid) for pid in answers}
    # The parent of all workers is below the server and its supervisor; the parent of forks is a fork of that one.
    forked = any(START.name in word for word in forked_by(parent.pid).cmdline())
    assert forked is (fork is True)
    log = (server.folder / "logs" / "server.log").read_text()
    (line,) = [one for one in log.splitlines() if f"{name} 1.0: " in one and "the model: " in one]
    assert ("workers are forks of one process" in line) is forked
    assert ("sets torchmar: {fork:" in line) is (fork is not None)


def test_workers_of_a_known_handler_are_forks(running: Builtin, digits: Path) -> None:
    shutil.copy(digits, running.model_store)
    running.management.register(digits.name, initial_workers=2)
    log = (running.folder / "logs" / "server.log").read_text()
    assert re.search(r"digits 1.0: workers are forks of one process that loads the model: torchmar_handlers", log)
    assert "has loaded the model for itself" not in log
