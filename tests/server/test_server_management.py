"""torchmar.server.api.management answers as TorchServe does, call by call, but where TorchServe is wrong."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.servers import KilledTorchServe, write_config
from tests.support.slow_archives import BROKEN, SLOW, SLOW_TO_LOAD, pack
from torchmar.connection import Endpoint
from torchmar.management import ManagementClient
from torchmar.server import http as web
from torchmar.server.api.management import Management
from torchmar.server.config import reader
from torchmar.server.models.archive_cache import ArchiveCache
from torchmar.server.models.registry import Registry
from torchmar.server.telemetry.events import Events
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.telemetry.observer import ServerObserver
from torchmar.server.tokens import Tokens
from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.jobs import Job, Part, Reply
from torchmar.server.workers.pools import LocalPools

JSON = {"Content-Type": "application/json"}
HUNGRY = "def handle(rows, context):\n    raise MemoryError('too large')\n"
TELLING = """
def handle(rows, context):
    if rows is None:
        return None
    if context.get_request_header(0, "describe"):
        headers = context.get_all_request_header(0)
        return [{"mine": headers.get("X-Mine"), "token": headers.get("Authorization"), "rows": rows}]
    return ["x"]
"""
LISTING = "def handle(rows, context):\n    return [['a', 'b']] * len(rows or [])\n"
RAISING = "def handle(rows, context):\n    if rows: raise ValueError('no')\n"


class Answer(NamedTuple):
    status: int
    content_type: str
    body: Any


class Engine:
    """A client of one of the two servers, over a socket."""

    def __init__(self, address: tuple[str, int], key_file: Path | None) -> None:
        self.address, self.key_file = address, key_file

    def key(self, kind: str) -> str:
        return str(json.loads(self.key_file.read_text())[kind]["key"]) if self.key_file else ""

    def __call__(
        self, method: str, path: str, body: str = "", headers: Mapping[str, str] = {}, kind: str = "management"
    ) -> Answer:
        token = {"Authorization": f"Bearer {self.key(kind)}"} if kind else {}
        with closing(http.client.HTTPConnection(*self.address, timeout=60)) as connection:
            connection.request(method, path, body or None, {**token, **headers})
            answer = connection.getresponse()
            text = answer.read()
        document = json.loads(text) if text.strip() else text.decode()
        return Answer(answer.status, answer.headers["content-type"], document)

    def clean(self) -> None:
        while names := [model["modelName"] for model in self("GET", "/models").body["models"]]:
            for name in names:
                for version in self("GET", f"/models/{name}/all").body[::-1]:
                    self("DELETE", f"/models/{name}/{version['modelVersion']}")
                self("DELETE", f"/models/{name}")


class Ours(Engine):
    """Our management API alone, in a loop of its own."""

    def __init__(self, config: Path, store: Path, folder: Path) -> None:
        folder.mkdir()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._config, self._store, self._folder = config, store, folder
        port = self.run(self._start())
        super().__init__(("127.0.0.1", port), self.tokens.file if self.settings.tokens else None)

    def run(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(60)

    def soon(self, call: Callable[[], Any]) -> Any:
        async def inside() -> Any:
            return call()

        return self.run(inside())

    async def _start(self) -> int:
        self.settings, _ = reader.read(self._config, {}, model_store=str(self._store))
        self.tokens = Tokens(self._folder / "key_file.json", enabled=self.settings.tokens)
        self.fork_server = ForkServer()
        self.metrics = Metrics(machine=False)
        self.sources = ArchiveCache(self.settings, self._folder / "archives")
        self.registry = Registry(
            self.sources, LocalPools(self.fork_server), self.settings, ServerObserver(self.metrics, Events())
        )
        app = Management(self.registry, self.tokens, self.settings, self.metrics)
        self._listener = await web.listen(app, "127.0.0.1", 0, web.Limits())
        return self._listener.port

    def close(self) -> None:
        async def end() -> None:
            await self._listener.close(5)
            await self.registry.close(5)
            await self.sources.close()
            self.fork_server.close()

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives") / "store"
    folder.mkdir()
    for version in ("1.0", "2.0", "3.0"):
        pack(folder, "made", version=version)
    whole = {"minWorkers": 1, "maxWorkers": 2, "batchSize": 3, "maxBatchDelay": 7, "responseTimeout": 33}
    pack(folder, "conf", config={**whole, "startupTimeout": 44})
    pack(folder, "bounds", config={"minWorkers": 0, "maxWorkers": 2, "maxBatchDelay": 0, "batchSize": 3})
    pack(folder, "low", config={"minWorkers": 2, "batchSize": 4})
    pack(folder, "high", config={"maxWorkers": 2})
    pack(folder, "crossed", config={"minWorkers": 3, "maxWorkers": 1})
    pack(folder, "wrong", config={"minWorkers": "1", "maxWorkers": "1", "batchSize": "x", "deviceIds": [0, 5]})
    pack(folder, "special", config={"clientTimeoutInMills": 55, "jobQueueSize": 7, "maxRetryTimeoutInSec": 9})
    pack(folder, "ticket", config={"useJobTicket": True})
    pack(folder, "sequence", config={"sequenceBatching": True})
    pack(folder, "file", config={"own": {"key": 1}})
    pack(folder, "tired", SLOW_TO_LOAD)
    pack(folder, "slow", SLOW)
    pack(folder, "broken", BROKEN)
    pack(folder, "hungry", HUNGRY)
    pack(folder, "late", SLOW_TO_LOAD, config={"startupTimeout": 1})
    pack(folder, "telling", TELLING)
    pack(folder, "listing", LISTING)
    pack(folder, "raising", RAISING)
    (folder.parent / "outside.mar").write_bytes((folder / "made-1.0.mar").read_bytes())
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("torchserve")
    with KilledTorchServe(write_config(folder), store, folder / "run") as running:
        host, _, port = running.properties.get("management_address").removeprefix("http://").rpartition(":")
        yield Engine((host, int(port)), running.folder / "key_file.json")


def serve(folder: Path, store: Path, **keys: str) -> Ours:
    # What the checks refuse, TorchServe registers; they are `torchmar.server.models.archive_cache`' and tested there.
    return Ours(write_config(folder, torchmar_check_archives="false", **keys), store, folder / "run")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Ours]:
    allowed = f"{store.as_uri()}/.*"
    with closing(serve(tmp_path_factory.mktemp("ours"), store, allowed_urls=allowed)) as running:
        yield running


Call = tuple[Any, ...]


def put(path: str) -> Call:
    return ("PUT", f"/models/{path}")


def get(path: str) -> Call:
    return ("GET", f"/models/{path}")


def register(query: str) -> Call:
    return ("POST", f"/models?url={query}")


def delete(path: str) -> Call:
    return ("DELETE", f"/models/{path}")


def both_kinds(**document: object) -> list[Call]:
    return [("POST", "/models", json.dumps(document), JSON), get("made"), delete("made")]


ONE, TWO, THREE = (register(f"made-{version}.mar") for version in ("1.0", "2.0", "3.0"))
WORKER = register("made-1.0.mar&initial_workers=1")

# Calls that both servers answer alike.
SAME: dict[str, Sequence[Call]] = {
    "without a url": [("POST", "/models"), ("POST", "/models?url="), ("POST", "/models?x=1")],
    "urls that are nowhere": [
        register("missing.mar"),
        register("missing"),
        register("../outside.mar"),
        register("..%2Foutside.mar"),
        register("http://127.0.0.1:9/x.mar"),
        register("https://example.com/x.mar"),
        register("file:///etc/passwd"),
        ("GET", "/models"),
    ],
    "runtimes": [register(f"made-1.0.mar&runtime={one}") for one in ("lua", "PYTHON", "")]
    + [register("made-1.0.mar&runtime=python3"), get("made")],
    "numbers": [
        call
        for parameter in (
            *("batch_size=8", "batch_size=", "batch_size=%2B4", "batch_size=-1"),
            *("batch_size=2147483647", "max_batch_delay=0", "max_batch_delay=-100"),
            *("response_timeout=5", "response_timeout=-1", "startup_timeout=5", "startup_timeout=-1"),
            *("initial_workers=-1", "initial_workers=", "synchronous=false", "unknown=1"),
            *("batch_size=2&batch_size=3", "s3_sse_kms=true", "url=second.mar"),
        )
        for call in (register(f"made-1.0.mar&{parameter}"), get("made"), delete("made"))
    ],
    "names": [
        call
        for name in ("other", "bad%20name", "%C3%A9", "all", "x.y-z_1")
        for call in (register(f"made-1.0.mar&model_name={name}"), get(name), delete(name))
    ],
    "workers": [WORKER, get("made"), WORKER, ONE, ("GET", "/models"), delete("made"), get("made")],
    "workers in the background": [register("made-1.0.mar&initial_workers=1&synchronous=false")],
    "json": [
        *both_kinds(url="made-1.0.mar", max_batch_delay=100),
        *both_kinds(url="made-1.0.mar", max_batch_delay=100, batch_size="7", response_timeout=9, unknown=1),
        *both_kinds(url="made-1.0.mar", max_batch_delay=5, batch_size=None, handler=None, synchronous="true"),
        *both_kinds(batch_size=2),
        *both_kinds(url=5),
        ("POST", "/models", "url=made-1.0.mar", {"Content-Type": "application/x-www-form-urlencoded"}),
        ("POST", "/models", '{"url": "made-1.0.mar"}', {"Content-Type": "text/plain"}),
    ],
    "configured": [
        call
        for query in ("", "&initial_workers=1", "&initial_workers=1&batch_size=1&max_batch_delay=100")
        for name in ("conf", "bounds", "low", "high", "crossed", "wrong", "special", "ticket")
        if query.startswith("&") is (name in ("conf", "bounds"))
        for call in (register(f"{name}-1.0.mar{query}"), get(name), delete(name))
    ],
    "versions": [
        *(WORKER, TWO, THREE, get("made"), get("made/2.0"), get("made/9"), get("made/"), get("made/1.0/")),
        *(get("made/1.0/x"), get("made%2F2.0"), get("nope"), get("nope/1.0"), get("nope/all")),
        *(("GET", "/models/"), ("GET", "/models//"), ("GET", "//models")),
        *(get("made/2.0?customized=true"), get("made/9?customized=true"), get("nope?customized=true")),
    ],
    "the default": [
        *(ONE, TWO, put("made/2.0/set-default"), get("made"), ("GET", "/models"), put("made/9/set-default")),
        *(put("nope/1/set-default"), put("made/set-default"), put("x/made/1.0/set-default")),
        *(put("made/1.0/set-default/"), put("made/1.0/other"), ("POST", "/models/made/1.0/set-default")),
    ],
    "unregistering": [
        *(ONE, TWO, delete("made/1.0"), delete("made"), delete("made/all"), delete("made/9"), delete("nope")),
        *(delete("nope/1"), delete("made/2.0"), delete("made/2.0"), delete("made/1.0"), delete("made")),
    ],
    "scaling": [
        *(WORKER, put("made?min_worker=2&synchronous=true"), get("made"), put("made?max_worker=3&synchronous=true")),
        *(get("made"), put("made?synchronous=true"), get("made"), put("made")),
        *(put("made?min_worker=0&max_worker=2&synchronous=true"), get("made"), put("made?max_worker=0")),
        *(put("made?min_worker=2&max_worker=1"), put("nope?min_worker=2&max_worker=1"), put("nope?min_worker=1")),
        *(put("made/9?min_worker=1"), put("made/all?min_worker=1"), put("made?min_worker=&synchronous=True")),
        get("made"),
        *(put("made?model_version=1.0&min_worker=1&synchronous=true"), put("made/1.0?min_worker=0&synchronous=true")),
        *(put("made?batch_size=8&min_worker=0&synchronous=true"), get("made"), put(""), put("?min_worker=1")),
    ],
    "what handlers describe": [
        call
        for name in ("made", "listing")
        for call in (
            register(f"{name}-1.0.mar&initial_workers=1"),
            get(f"{name}?customized=true"),
            get(f"{name}/1.0?customized=TRUE"),
            get(f"{name}/all?customized=true"),
        )
    ]
    + [register("raising-1.0.mar&initial_workers=1"), get("raising?customized=true")],
    "lists": [
        *(register(f"made-1.0.mar&model_name={name}") for name in "cabed"),
        *(
            ("GET", f"/models?{query}")
            for query in (
                *(
                    "limit=2",
                    "limit=2&next_page_token=2",
                    "limit=2&next_page_token=4",
                    "limit=5",
                    "limit=0",
                ),
                *("limit=1000", "limit=", "next_page_token=5", "next_page_token=99", "limit=1&limit=2"),
            )
        ),
    ],
    "methods and paths": [
        *((method, "/models") for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")),
        *((method, "/models/made") for method in ("PATCH", "POST", "HEAD")),
        *(
            ("GET", path)
            for path in ("/", "/nope", "/ping", "/metrics", "/predictions/made", "/v2/health/ready", "/v2")
        ),
        *(("OPTIONS", path) for path in ("/models/nope", "/models/nope/1", "/nope")),
        ("GET", "/v1/models/nope"),
        ("GET", "/v1/models/made/x"),
        WORKER,
        ("GET", "/v1/models/made"),
        ("GET", "/v1/models/made:predict"),
        ("POST", "/v1/models/made"),
    ],
    "without tokens": [
        *(
            (method, path, "", {}, "")
            for path in ("/models", "/nope", "/models/x", "/token")
            for method in ("GET", "PUT")
        ),
        *(
            ("GET", "/models", "", {"Authorization": words}, "")
            for words in ("", "Bearer", "Bearer x", "Basic x", "x y z")
        ),
        *(("GET", "/models", "", {}, kind) for kind in ("inference", "API")),
        *(("GET", f"/token?type={kind}", "", {}, "API") for kind in ("x", "", "key", "API", "MANAGEMENT")),
        *(("GET", "/token?type=management", "", {}, kind) for kind in ("management", "inference")),
        ("GET", "/token", "", {}, "API"),
    ],
    "json as Gson reads it": [
        ("POST", "/models", "{'url':'made-1.0.mar', 'model_name':'quoted', 'synchronous':'true'}", JSON),
        ("POST", "/models", "{url: made-1.0.mar, model_name: bare}", JSON),
    ],
    "tokens that are renewed": [
        ("GET", "/token?type=management", "", {}, "API"),
        ("GET", "/models"),
        ("GET", "/token?type=inference", "", {}, "API"),
    ],
}


def plain(answer: Answer) -> Answer:
    """Return an answer without the values that differ in every run."""
    body = answer.body
    if isinstance(body, list):
        body = [dict(described) for described in body]
        for described in body:
            described["workers"] = [
                {**worker, "id": 0, "pid": 0, "startTime": 0, "memoryUsage": 0} for worker in described["workers"]
            ]
    return answer._replace(body=body)


@pytest.mark.parametrize("calls", SAME.values(), ids=SAME)
def test_calls_are_answered_as_torchserve_answers_them(theirs: Engine, ours: Ours, calls: Sequence[Call]) -> None:
    for engine in (theirs, ours):
        engine.clean()
    for call in calls:
        answer, wanted = plain(ours(*call)), plain(theirs(*call))
        if call[1].startswith(("/v1/", "/v2")) and answer.status >= 400:
            # What KServe's clients read, beside TorchServe's own.
            assert answer.body.pop("error") == answer.body["message"]
        assert answer == wanted, call
        if isinstance(answer.body, dict):
            assert list(answer.body) == list(wanted.body), call
        elif isinstance(answer.body, list):
            assert [list(item) for item in answer.body] == [list(item) for item in wanted.body], call
    for engine in (theirs, ours):
        engine.clean()


# Calls that TorchServe answers wrongly: its status, ours, and a part of our message.
OTHERWISE: dict[str, tuple[Sequence[Call], int, int, str]] = {
    "no time to answer": ([register("made-1.0.mar&response_timeout=0")], 200, 400, "at least 1"),
    "no time to start": ([register("made-1.0.mar&startup_timeout=-7")], 200, 400, "at least 0"),
    "no requests at once": ([register("made-1.0.mar&batch_size=0"), get("made")], 200, 200, '"batchSize": 1'),
    "fewer than none": ([register("made-1.0.mar&batch_size=-5"), get("made")], 200, 200, '"batchSize": 1'),
    "a delay that has been": (
        [register("made-1.0.mar&max_batch_delay=-5"), get("made")],
        *(200, 200),
        '"maxBatchDelay": 0',
    ),
    "more memory than there is": (
        [register("hungry-1.0.mar&initial_workers=1")],
        *(507, 507),
        "version: 1.0: MemoryError: too large",
    ),
    "no limit to start": (
        [register("made-1.0.mar&startup_timeout=0&initial_workers=1")],
        *(500, 200),
        "registered with 1 initial workers",
    ),
    "no json": ([("POST", "/models", "{nope", JSON)], 500, 400, "The body is not JSON"),
    "json without an object": ([("POST", "/models", "[]", JSON)], 500, 400, "not a JSON object"),
    "an empty body": ([("POST", "/models", "", JSON)], 500, 400, "Parameter url is required."),
    "null": ([("POST", "/models", "null", JSON)], 500, 400, "Parameter url is required."),
    "half a request": (
        [("POST", "/models", '{"url": "made-1.0.mar", "batch_size": 1.5}', JSON)],
        500,
        400,
        "batch_size is '1.5'",
    ),
    "no number": ([("POST", "/models", '{"url": "made-1.0.mar", "batch_size": "x"}', JSON)], 500, 400, "whole number"),
    "no delay in json": (
        [("POST", "/models", '{"url": "made-1.0.mar"}', JSON), get("made")],
        *(200, 200),
        '"maxBatchDelay": 100',
    ),
    "a timeout beside a file without one": (
        [register("file-1.0.mar&response_timeout=9"), get("file")],
        *(200, 200),
        '"responseTimeout": 9',
    ),
    "batches of sequences": (
        [register("sequence-1.0.mar")],
        200,
        400,
        "sets sequenceBatching, which this server does not do",
    ),
    "fewer workers than none": ([ONE, put("made?min_worker=-1&synchronous=true")], 500, 400, "number from 0 to"),
    **{
        f"{name}={value}": ([WORKER, (method, path.format(f"{name}={value}"))], status, 400, f"Parameter {name} is")
        for method, path, status, name, value in (
            ("GET", "/models?{}", 200, "limit", "many"),
            ("GET", "/models?{}", 200, "limit", "-1"),
            ("GET", "/models?{}", 200, "limit", "99999999999"),
            ("GET", "/models?{}", 200, "next_page_token", "x"),
            ("GET", "/models?{}", 200, "next_page_token", "-1"),
            ("PUT", "/models/made?synchronous=true&{}", 200, "min_worker", "1e9"),
            ("PUT", "/models/made?synchronous=true&{}", 200, "max_worker", "%20"),
            ("POST", "/models?url=made-2.0.mar&{}", 200, "batch_size", "x"),
            ("POST", "/models?url=made-2.0.mar&{}", 200, "batch_size", "99999999999"),
            ("POST", "/models?url=made-2.0.mar&{}", 200, "initial_workers", "two"),
            ("POST", "/models?url=made-2.0.mar&{}", 200, "response_timeout", "1.5"),
        )
    },
    "a default without workers": (
        [WORKER, TWO, put("made/2.0/set-default")],
        *(200, 409),
        "PUT /models/made/2.0?min_worker=1",
    ),
    "the wrong call for set-default": ([ONE, ("DELETE", "/models/made/1.0/set-default")], 200, 405, "not allowed"),
    "a handler that does not load": (
        [register("broken-1.0.mar&initial_workers=1")],
        *(500, 500),
        "for model broken version: 1.0: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "a body and a query with different parameters": (
        [("POST", "/models?url=made-1.0.mar&batch_size=9", '{"batch_size": 2}', JSON), get("made")],
        *(404, 200),
        '"batchSize": 2',
    ),
    "a misspelt parameter": ([register("made-1.0.mar&batch_sise=2")], 200, 400, "did you mean batch_size?"),
    "one as in model-config.yaml": ([register("made-1.0.mar&batchSize=2")], 200, 400, "did you mean batch_size?"),
    "a name of another call": ([register("made-1.0.mar&min_worker=2")], 200, 400, "did you mean initial_workers?"),
    "a misspelt key": (
        [("POST", "/models", '{"url": "made-1.0.mar", "max_batch_delay": 1, "initialWorkers": 1}', JSON)],
        *(200, 400),
        "Unknown parameter initialWorkers; did you mean initial_workers?",
    ),
    "a misspelt parameter of scaling": ([ONE, put("made?min-workers=2")], 202, 400, "did you mean min_worker?"),
    "a misspelt parameter of lists": ([("GET", "/models?limt=2")], 200, 400, "did you mean limit?"),
    "neither true nor false": ([ONE, get("made?customized=x")], 200, 400, "customized is neither true nor false: x"),
    "one that is meant for true": (
        [ONE, put("made?min_worker=0&synchronous=1")],
        *(202, 400),
        "synchronous is neither true nor false: 1",
    ),
    "workflows": ([("GET", "/workflows")], 200, 404, "not found"),
}


@pytest.mark.parametrize(("calls", "their_status", "our_status", "words"), OTHERWISE.values(), ids=OTHERWISE)
def test_calls_that_torchserve_answers_wrongly_are_answered_rightly(
    theirs: Engine, ours: Ours, calls: Sequence[Call], their_status: int, our_status: int, words: str
) -> None:
    for engine in (theirs, ours):
        engine.clean()
    for call in calls:
        wanted, answer = theirs(*call), ours(*call)
    assert (wanted.status, answer.status) == (their_status, our_status)
    text = json.dumps(answer.body, ensure_ascii=False)
    assert words in text
    assert words not in json.dumps(wanted.body, ensure_ascii=False)
    for engine in (theirs, ours):
        engine.clean()


def test_a_parameter_that_is_like_none_is_ignored_with_a_line_in_the_log(
    ours: Ours, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        assert ours(*register("made-1.0.mar&colour=red%0Agreen&number_gpu=1")).status == 200
        assert ours(*put("made?timeout=5&min_worker=0&synchronous=true")).status == 200
    assert "POST /models: unknown parameter 'colour' is ignored" in caplog.text
    assert "PUT /models/made: unknown parameter 'timeout' is ignored" in caplog.text
    ours.clean()


@pytest.mark.parametrize("name", ["a%2Fb", "a%0Ab", "a%00"])
def test_a_name_that_no_path_leads_to_is_an_error(ours: Ours, name: str) -> None:
    answer = ours(*register(f"made-1.0.mar&model_name={name}"))
    assert (answer.status, answer.body["type"]) == (400, "InvalidModelException")
    assert "cannot stand in the path of a request" in answer.body["message"]
    assert ours("GET", "/models").body == {"models": []}


def test_a_model_that_loads_too_long_is_not_registered(ours: Ours) -> None:
    answer = ours(*register("late-1.0.mar&initial_workers=1"))
    assert answer.body["message"].startswith("Failed to start workers for model late version: 1.0")
    assert ours(*get("late")).status == 404


def test_the_answers_of_both_have_the_same_layout(theirs: Engine, ours: Ours) -> None:
    for engine in (theirs, ours):
        engine.clean()

    def raw(engine: Engine, method: str, path: str) -> bytes:
        with closing(http.client.HTTPConnection(*engine.address, timeout=60)) as connection:
            connection.request(method, path, headers={"Authorization": f"Bearer {engine.key('management')}"})
            return connection.getresponse().read()

    for method, path in (("GET", "/models"), ONE, ("GET", "/models"), get("made"), get("nope"), delete("made")):
        assert raw(ours, method, path) == raw(theirs, method, path)


def test_a_handlers_description_does_not_contain_the_clients_token(ours: Ours) -> None:
    ours(*register("telling-1.0.mar&initial_workers=1"))
    description = ours("GET", "/models/telling?customized=true", headers={"X-Mine": "here"}).body[0]
    assert description["customizedMetadata"] == {"mine": "here", "token": None, "rows": [{}]}
    assert list(description)[-1] == "customizedMetadata"
    ours.clean()


def test_a_model_that_does_not_load_is_described_with_its_traceback(ours: Ours) -> None:
    assert ours(*register("broken-1.0.mar&initial_workers=1&synchronous=false")).status == 202
    assert ours.run(_failed(ours, "broken"))
    (description,) = ours(*get("broken")).body
    assert description["failure"].splitlines()[0] == "Traceback (most recent call last):"
    assert "handler.py" in description["failure"]
    assert description["failure"].splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_module'"
    assert [worker["status"] for worker in description["workers"]] != ["READY"]
    assert ours("GET", "/v1/models/broken").body == {"name": "broken", "ready": False}
    ours.clean()


async def _failed(ours: Ours, name: str) -> str:
    while not (failure := ours.registry.find(name).pool.failure):
        await asyncio.sleep(0.01)
    return failure


def test_a_slow_registration_delays_no_other_request(ours: Ours) -> None:
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(ours, *register("tired-1.0.mar&initial_workers=1"))
        while ours(*get("tired")).status != 200:
            pass
        (description,) = ours(*get("tired")).body
        assert [worker["status"] for worker in description["workers"]] == ["LOADING"]
        assert ours(*WORKER).status == 200
        assert not slow.done()
        assert slow.result().status == 200
    ours.clean()


def test_of_registrations_at_the_same_time_one_is_done_and_the_others_conflict(ours: Ours) -> None:
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(lambda _: ours(*register("tired-1.0.mar&initial_workers=1")), range(4)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409]
    ours.clean()


@pytest.mark.parametrize("call", [delete("slow"), put("slow?min_worker=0&synchronous=true")])
def test_running_and_queued_requests_are_answered_before_workers_end(ours: Ours, call: Call) -> None:
    ours(*register("slow-1.0.mar&initial_workers=1"))
    replies: list[Reply] = []
    pool = ours.soon(lambda: ours.registry.find("slow").pool)
    for _ in range(2):
        job = Job("id", {}, [Part("body", "text/plain", b"x")], replies.append)
        ours.soon(lambda job=job: pool.submit(job))
    assert ours(*call).status == 200
    assert [(reply.status, reply.body) for reply in replies] == [(200, b"done")] * 2
    ours.clean()


@pytest.mark.parametrize("seconds", ["0", "1"])
def test_an_unregistration_that_takes_too_long_changes_nothing(tmp_path: Path, store: Path, seconds: str) -> None:
    with closing(serve(tmp_path, store, unregister_model_timeout=seconds)) as ours:
        assert ours(*register("slow-1.0.mar&initial_workers=1")).status == 200
        replies: list[Reply] = []
        pool = ours.soon(lambda: ours.registry.find("slow").pool)

        def submit() -> None:
            ours.registry.find("slow").pool.submit(Job("id", {}, [Part("body", "text/plain", b"x")], replies.append))

        requests = 2 + int(seconds)  # a second each
        for _ in range(requests):
            ours.soon(submit)
        answer = ours(*delete("slow"))
        assert (answer.status, answer.body["type"]) == (408, "RequestTimeoutException")
        assert answer.body["message"] == "Timed out while cleaning resources: slow"
        assert ours(*get("slow")).status == 200
        ours.soon(submit)
        assert ours.run(pool.drain(60))
        assert [reply.status for reply in replies] == [200] * (requests + 1)


def test_models_are_registered_and_removed_only_where_that_is_allowed(
    tmp_path: Path, store: Path, theirs: Engine
) -> None:
    with closing(serve(tmp_path, store, enable_model_api="false")) as closed:
        for call in (ONE, ("POST", "/models"), delete("nope")):
            answer = closed(*call)
            assert (answer.status, answer.body["type"]) == (405, "MethodNotAllowedException")
            assert answer == theirs("PATCH", "/models")
            assert closed(*call, "", {}, "").status == 400
        assert closed("GET", "/models").body == {"models": []}


def test_without_tokens_no_request_needs_one_and_there_is_none_to_renew(
    tmp_path: Path, store: Path, theirs: Engine
) -> None:
    with closing(serve(tmp_path, store, disable_token_authorization="true")) as open_to_all:
        assert open_to_all("GET", "/models", kind="").body == {"models": []}
        assert open_to_all("GET", "/token?type=management", kind="") == theirs("GET", "/nope")


def test_every_answer_is_counted_by_its_status(ours: Ours) -> None:
    def counts() -> list[int]:
        lines = dict(line.rsplit(" ", 1) for line in ours.soon(ours.metrics.text).splitlines() if line[0] != "#")
        totals = [
            sum(float(value) for key, value in lines.items() if key.startswith(f"Requests{group}XX")) for group in "245"
        ]
        return [int(total) for total in totals]

    before = counts()
    ours("GET", "/models")
    ours("GET", "/models/nothing")
    ours("GET", "/models", kind="inference")
    ours("GET", "/nothing")
    ours("POST", "/models?url=missing.mar")
    ours("POST", "/models?url=broken-1.0.mar&initial_workers=1")
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [1, 4, 1]


def test_the_api_is_described_to_all_with_the_paths_that_torchserve_describes(theirs: Engine, ours: Ours) -> None:
    for path in ("/", "/api-description"):
        method = "OPTIONS" if path == "/" else "GET"
        document, wanted = ours(method, path, kind="").body, theirs(method, path, kind="").body
        assert document["openapi"] == wanted["openapi"]
        assert set(wanted["paths"]) - set(document["paths"]) == {"/metrics"}
    theirs(*ONE)
    ours(*ONE)
    document, wanted = ours("OPTIONS", "/models/made").body, theirs("OPTIONS", "/models/made").body
    assert document["info"]["title"] == wanted["info"]["title"]
    for path, methods in wanted["paths"].items():
        assert set(methods) <= set(document["paths"][path])
    for engine in (theirs, ours):
        engine.clean()


def test_the_client_of_the_project_gets_the_same_results_as_from_torchserve(ours: Ours) -> None:
    address = "http://{}:{}".format(*ours.address)
    assert ours.key_file
    with ManagementClient(Endpoint(inference="", management=address, key_file=ours.key_file)) as client:
        assert "registered with 1 initial workers" in client.register("made-1.0.mar", initial_workers=1)
        (described,) = client.describe("made", customized=True)
        assert (described.ready, described.customized, described.workers[0].gpu) == (1, {}, False)
        client.register("made-2.0.mar")
        client.scale("made", "2.0", min_worker=1)
        client.set_default("made", "2.0")
        assert [model.url for model in client.models()] == ["made-2.0.mar"]
        client.unregister("made", "1.0")
        client.renew_token("management")
        assert client.ready("made")
        client.unregister("made")
        assert list(client.names()) == []
