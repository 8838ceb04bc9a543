"""torchmar.server.workers.staged_pool gives the answers of one process, with stages in separate processes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

from tests.support.paths import ROOT, SAMPLES
from tests.support.pool_harness import Make, PoolHarness, options_of, until
from tests.support.processes import forked_by, kill_worker
from tests.support.registry_harness import RegistryHarness
from torchmar.archive import Archive, build
from torchmar.comparison import differences
from torchmar.exchange import Response
from torchmar.management import ModelVersion
from torchmar.recipe import Sample
from torchmar.server.api import descriptions
from torchmar.server.api_error import ApiError
from torchmar.server.models.registration import Registration
from torchmar.server.workers import staged_pool
from torchmar.server.workers.jobs import Job, Part, Reply
from torchmar.server.workers.pool import Pool
from torchmar.server.workers.staged_pool import StagedPool
from torchmar.worker.process import forking

pytestmark = pytest.mark.skipif(not staged_pool.available(), reason="stages are Linux's")

# Workers of the stages beside the model.
BEFORE = {"preprocess_workers": 2}
BOTH = {"preprocess_workers": 2, "postprocess_workers": 2}
AFTER = {"postprocess_workers": 2}
STAGES = {"before": BEFORE, "both": BOTH, "after": AFTER}
stages = pytest.mark.parametrize("stages", STAGES.values(), ids=STAGES)
after = pytest.mark.parametrize("stages", [BOTH, AFTER], ids=["both", "after"])

# Like TorchServe's examples: three steps and a tensor between them. Answers have the processes of the steps.
STEPS = """
import os, time
import torch
from ts.torch_handler.base_handler import BaseHandler

GO = "GO"

class Steps(BaseHandler):
    def initialize(self, context):
        self.device = torch.device("cpu")
        self.initialized = True

    def preprocess(self, rows):
        values = []
        self.context.set_response_header(0, "first", self.context.get_request_id(0))
        for row in rows:
            what = row["body"]
            if what == "die first":
                os._exit(3)
            if what == "wait first":
                open(f"{row['flag']}.{os.getpid()}", "w").close()
                while not os.path.exists(row["flag"]):
                    time.sleep(0.01)
                what = 0.0
            values.append(torch.tensor([what, float(os.getpid()), 0.0], dtype=torch.float64))
        return torch.stack(values)

    def inference(self, data):
        if (data[:, 0] == 13).any():
            os._exit(3)
        while (data[:, 0] == 15).any() and not os.path.exists(GO):
            time.sleep(0.01)
        if (data[:, 0] == 14).any():
            raise ValueError("14 is no number")
        return torch.stack([data[:, 0] * 2, data[:, 1], torch.full_like(data[:, 0], os.getpid())], 1)

    def postprocess(self, data):
        self.context.set_response_header(0, "last", self.context.get_request_id(0))
        if (data[:, 0] == 46).any():
            os._exit(3)
        while (data[:, 0] == 50).any() and not os.path.exists(GO):
            time.sleep(0.01)
        if (data[:, 0] == 48).any():
            raise ValueError("24 is no number")
        return [
            {"value": row[0].item(), "size": len(data), "pids": [int(row[1]), os.getpid()], "model": int(row[2])}
            for row in data
        ]

    def explain_handle(self, data, raw):
        return [{"value": "explained", "pids": [int(data[0, 1]), os.getpid()]}]
"""


class Pools:
    """Pools of one test, of archives of its own."""

    def __init__(self, pool_harness: PoolHarness, folder: Path) -> None:
        self.harness, self._folder, self._made = pool_harness, folder, list[Pool]()

    def start(
        self, mar: Path, kind: type[Pool] = StagedPool, workers: int = 1, *, up: bool = True, **options: Any
    ) -> Any:
        folder = self._folder / f"model-{len(self._made)}"
        with Archive(mar) as archive:
            archive.extract(folder)
            handler = str(archive.manifest.model.handler)
        options = {**(BEFORE if kind is StagedPool and "postprocess_workers" not in options else {}), **options}

        async def start() -> Pool:
            pool = kind(self.harness.fork_server, options_of(handler, folder, **options), self.harness)
            self._made.append(pool)
            assert await pool.scale(workers, workers) is up, pool.failure
            return pool

        return self.harness.run(start())

    async def close(self) -> None:
        for pool in self._made:
            await pool.close()

    def memories(self) -> list[str]:
        """Return the shared memory that this process or a worker has open or mapped."""
        fork_server = psutil.Process(self.harness.fork_server.pid)
        targets = []
        for process in (psutil.Process(), fork_server, *fork_server.children(recursive=True)):
            with contextlib.suppress(OSError):  # it has ended
                targets += Path(f"/proc/{process.pid}/maps").read_text().splitlines()
                for file in Path(f"/proc/{process.pid}/fd").iterdir():
                    with contextlib.suppress(OSError):  # it was closed
                        targets.append(str(file.readlink()))
        return [target for target in targets if "memfd:torchmar" in target]


@pytest.fixture
def pools(pool_harness: PoolHarness, tmp_path: Path) -> Iterator[Pools]:
    """Start pools; afterwards neither they nor memory of theirs is there."""
    pool_harness.batches.clear()
    pools = Pools(pool_harness, tmp_path)
    yield pools
    pool_harness.run(pools.close())
    pool_harness.run(until(lambda: not pools.memories()))


@pytest.fixture(scope="module")
def whole(pool_harness: PoolHarness, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Run a worker of the digits without stages, whose answers those with stages are compared with."""
    pools = Pools(pool_harness, tmp_path_factory.mktemp("whole"))
    yield pools.start(digits, Pool, batch_size=8)
    pool_harness.run(pools.close())


@pytest.fixture(scope="module", params=STAGES.values(), ids=STAGES)
def staged_digits(
    request: pytest.FixtureRequest, pool_harness: PoolHarness, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StagedPool]:
    """Run workers of the digits with stages."""
    pools = Pools(pool_harness, tmp_path_factory.mktemp("staged"))
    yield pools.start(digits, batch_size=8, **request.param)
    pool_harness.run(pools.close())
    pool_harness.run(until(lambda: not pools.memories()))


async def ask(pool: Pool, bodies: Sequence[Any], headers: dict[str, str] | None = None, **fields: str) -> list[Reply]:
    """Return the replies to simultaneous requests; bodies are bytes, or values that JSON has."""
    loop = asyncio.get_running_loop()
    futures = []
    for body in bodies:
        future: asyncio.Future[Reply] = loop.create_future()
        kind, content = (
            ("application/octet-stream", body)
            if isinstance(body, bytes)
            else ("application/json", json.dumps(body).encode())
        )
        more = [Part(name, "text/plain", value.encode()) for name, value in fields.items()]
        pool.submit(Job("id", headers or {}, [Part("body", kind, content), *more], future.set_result))
        futures.append(future)
    return await asyncio.gather(*futures)


def holding(folder: Path, code: str = STEPS) -> str:
    """Return a handler that waits before its model, if it does so, until there is a file ``go``."""
    return code.replace('GO = "GO"', f"GO = {str(folder / 'go')!r}")


def values(replies: Sequence[Reply]) -> list[Any]:
    return [json.loads(reply.body)["value"] if reply.status == 200 else reply.status for reply in replies]


IMAGE = (SAMPLES / "seven.png").read_bytes()
B64 = base64.b64encode(IMAGE).decode()
PROTOCOLS = [
    *[(SAMPLES / f"{name}.png").read_bytes() for name in ("zero", "one", "two", "three")],
    b"no image",
    {"instances": [{"b64": B64}] * 2},
    {"instances": [{"b64": B64}, {"b64": "AAAA"}]},
    {"inputs": [{"name": "x", "shape": [1, 32, 32, 1], "datatype": "UINT8", "data": [7] * 1024}], "id": "mine"},
    {"inputs": [{"name": "x", "shape": [2], "datatype": "UINT8", "data": []}]},
]


def test_a_handler_gives_the_same_answers_in_every_protocol_good_and_bad_mixed(
    pool_harness: PoolHarness, whole: Pool, staged_digits: StagedPool
) -> None:
    expected = pool_harness.run(ask(whole, PROTOCOLS))
    assert [reply.status for reply in expected] == [200] * 4 + [400, 200, 400, 200, 400]
    for _ in range(3):
        for wanted, other in zip(expected, pool_harness.run(ask(staged_digits, PROTOCOLS)), strict=True):
            assert wanted._replace(body=b"") == other._replace(body=b"")
            # Rows of a batch of another size may differ in their last digit.
            sample = Sample(json={}, status=wanted.status, expect=json.loads(wanted.body), tolerance=1e-5)
            assert differences(sample, Response(other.status, other.body)) == []


ROWS = [json.loads((ROOT / f"archives/tumours/samples/{name}.json").read_bytes()) for name in ("malignant", "benign")]
OF_HANDLERS: dict[str, list[Any]] = {
    "topics": [b"The coroutine runs until the event loop is closed.", {"text": "a test"}, ["an email", 5], [1]],
    "tumours": [*ROWS, ROWS, {"instances": ROWS}, [*ROWS, [1, 2]], {}],
    "segments": [
        *[(ROOT / f"archives/segments/samples/{name}.png").read_bytes() for name in ("one", "two")],
        {"inputs": [{"name": "x", "shape": [2, 32, 48, 3], "datatype": "UINT8", "data": [7] * 9216}]},
        b"no image",
    ],
}


@pytest.mark.parametrize(("name", "bodies"), OF_HANDLERS.items(), ids=OF_HANDLERS)
def test_handlers_of_texts_tables_and_maps_have_a_last_stage(
    pools: Pools, name: str, bodies: list[Any], tmp_path: Path, weights: None
) -> None:
    mar = build(ROOT / "archives" / name, tmp_path / "store").path
    one_each = {"preprocess_workers": 1, "postprocess_workers": 1}
    staged, whole = pools.start(mar, batch_size=8, **one_each), pools.start(mar, Pool, batch_size=8)
    expected = pools.harness.run(ask(whole, bodies))
    assert {reply.status for reply in expected} == {200, 400}
    for wanted, other in zip(expected, pools.harness.run(ask(staged, bodies)), strict=True):
        assert wanted._replace(body=b"") == other._replace(body=b"")
        sample = Sample(json={}, status=wanted.status, expect=json.loads(wanted.body), tolerance=1e-5)
        assert differences(sample, Response(other.status, other.body)) == []


def test_explanations_and_descriptions_are_the_same(
    pool_harness: PoolHarness, whole: Pool, staged_digits: StagedPool
) -> None:
    for headers in ({"explain": "True"}, {"describe": "True"}):
        expected = pool_harness.run(ask(whole, [IMAGE] * 2, headers))
        assert pool_harness.run(ask(staged_digits, [IMAGE] * 2, headers)) == expected


@pytest.mark.parametrize("staged_digits", [BEFORE, BOTH], ids=["before", "both"], indirect=True)
def test_bad_requests_never_reach_the_model(pool_harness: PoolHarness, staged_digits: StagedPool) -> None:
    pool_harness.batches.clear()
    replies = pool_harness.run(ask(staged_digits, [b"no image", IMAGE, b"none either"]))
    assert [reply.status for reply in replies] == [400, 200, 400]
    assert pool_harness.batches == [1]


def test_tensors_of_requests_are_one_batch_for_three_steps(pools: Pools, make: Make, tmp_path: Path) -> None:
    staged = pools.start(make(holding(tmp_path)), batch_size=4)

    async def queue() -> list[Reply]:
        first = asyncio.ensure_future(ask(staged, [15.0]))
        await until(lambda: any(worker.jobs for worker in staged._inference._workers))
        others = asyncio.ensure_future(ask(staged, [1.0, 2.0, 3.0, 4.0, 5.0]))
        await until(lambda: staged._inference.pending == 5)
        (tmp_path / "go").touch()
        return [*await first, *await others]

    replies = pools.harness.run(queue())
    assert values(replies) == [30.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert sorted(json.loads(reply.body)["size"] for reply in replies) == [1, 1, 4, 4, 4, 4]
    assert pools.harness.batches == [1, 4, 1]
    assert {reply.headers.get("first") for reply in replies} == {"id"}


@stages
def test_three_steps_answer_as_without_stages(pools: Pools, make: Make, stages: dict[str, int]) -> None:
    mar = make(dedent(STEPS))
    inputs = [1.0, "no number", 14.0, 24.0, 2.0, None]
    whole, staged = pools.start(mar, Pool), pools.start(mar, **stages)
    expected = pools.harness.run(ask(whole, inputs))
    replies = pools.harness.run(ask(staged, inputs))
    assert values(replies) == values(expected) == [2.0, 503, 503, 503, 4.0, 503]
    assert [reply.headers for reply in replies if reply.status == 200] == [{"first": "id", "last": "id"}] * 2
    failed = [reply for reply in replies if reply.status != 200]
    assert failed == [reply for reply in expected if reply.status != 200]
    (explained,) = pools.harness.run(ask(staged, [1.0], {"explain": "True"}))
    (worker,) = staged.workers()
    assert json.loads(explained.body) == {"value": "explained", "pids": [worker.pid, worker.pid]}


def test_requests_are_preprocessed_at_once_in_processes_of_their_own(pools: Pools, make: Make, tmp_path: Path) -> None:
    staged = pools.start(make(dedent(STEPS)), batch_size=4)
    flag = tmp_path / "flag"

    async def both() -> list[Reply]:
        waiting = asyncio.ensure_future(ask(staged, ["wait first"] * 2, flag=str(flag)))
        await until(lambda: len(list(tmp_path.glob("flag.*"))) == 2)  # neither has come to an end
        flag.touch()
        return await waiting

    pids = [json.loads(reply.body)["pids"] for reply in pools.harness.run(both())]
    assert {first for first, _ in pids} == {worker.pid for worker in staged.stage_workers()["preprocess"]}
    assert {second for _, second in pids} == {worker.pid for worker in staged.workers()}


def test_a_worker_of_the_first_stage_that_dies_takes_its_request_along_and_no_other(pools: Pools, make: Make) -> None:
    staged = pools.start(make(dedent(STEPS)), batch_size=4)
    assert values(pools.harness.run(ask(staged, [1.0, "die first", 2.0, 3.0]))) == [2.0, 500, 4.0, 6.0]
    pools.harness.run(until(lambda: all(worker.state == "READY" for worker in staged.stage_workers()["preprocess"])))
    assert values(pools.harness.run(ask(staged, [4.0] * 4))) == [8.0] * 4


def test_a_worker_with_the_model_that_dies_loses_only_the_request_that_is_to_blame(pools: Pools, make: Make) -> None:
    staged = pools.start(make(dedent(STEPS)), batch_size=4)
    assert values(pools.harness.run(ask(staged, [1.0, 13.0, 2.0, 3.0]))) == [2.0, 500, 4.0, 6.0]
    pools.harness.run(until(lambda: staged.ready == 1))
    assert values(pools.harness.run(ask(staged, [4.0] * 4))) == [8.0] * 4


def test_killed_processes_leave_no_memory_and_later_requests_are_answered(
    pools: Pools, make: Make, tmp_path: Path
) -> None:
    staged = pools.start(make(dedent(STEPS)), batch_size=4)
    flag = tmp_path / "flag"

    async def kill() -> list[Any]:
        waiting = asyncio.ensure_future(ask(staged, ["wait first"] * 2, flag=str(flag)))
        await until(lambda: len(list(tmp_path.glob("flag.*"))) == 2)
        behind = asyncio.ensure_future(ask(staged, [1.0, 2.0]))
        assert pools.memories()
        for worker in (*staged.stage_workers()["preprocess"], *staged.workers()):
            kill_worker(worker.pid)
        return [values(await waiting), values(await behind)]

    assert pools.harness.run(kill()) == [[500, 500], [2.0, 4.0]]
    pools.harness.run(until(lambda: not pools.memories()))


def test_a_request_whose_client_has_gone_leaves_no_memory(pools: Pools, make: Make, tmp_path: Path) -> None:
    staged = pools.start(make(dedent(STEPS)), batch_size=4)
    flag = tmp_path / "flag"

    async def leave() -> None:
        busy = asyncio.ensure_future(ask(staged, ["wait first"] * 2, flag=str(flag)))
        await until(lambda: len(list(tmp_path.glob("flag.*"))) == 2)
        replies: list[Reply] = []
        gone = Job("id", {}, [Part("body", "application/json", b"1.0")], replies.append)
        staged.submit(gone)
        gone.cancelled = True
        await until(lambda: not staged.pending)
        assert len(pools.memories()) == 2
        flag.touch()
        await busy
        assert replies == []

    pools.harness.run(leave())
    pools.harness.run(until(lambda: not pools.memories()))


def test_the_number_of_preprocessed_requests_is_bounded(pools: Pools, make: Make, tmp_path: Path) -> None:
    staged = pools.start(make(holding(tmp_path)), batch_size=2, queue_size=50)

    async def crowd() -> list[Any]:
        waiting = asyncio.ensure_future(ask(staged, [15.0] * 40))
        await until(
            lambda: (
                staged._inference.pending >= 4
                and not any(worker.jobs for worker in staged._others["preprocess"]._workers)
            )
        )
        assert staged._inference.pending <= 4 + 2
        assert staged.pending > 30
        with pytest.raises(ApiError):
            await ask(staged, [1.0] * 20)
        (tmp_path / "go").touch()
        return values(await waiting)

    assert pools.harness.run(crowd()) == [30.0] * 40


@after
def test_the_outputs_of_a_batch_are_postprocessed_one_by_one_in_processes_of_their_own(
    pools: Pools, make: Make, tmp_path: Path, stages: dict[str, int]
) -> None:
    staged = pools.start(make(holding(tmp_path)), batch_size=4, **stages)

    async def queue() -> list[Reply]:
        first = asyncio.ensure_future(ask(staged, [15.0]))
        await until(lambda: any(worker.jobs for worker in staged._inference._workers))
        others = asyncio.ensure_future(ask(staged, [1.0, 2.0, 3.0, 4.0, 5.0]))
        await until(lambda: staged._inference.pending == 5)
        (tmp_path / "go").touch()
        return [*await first, *await others]

    replies = pools.harness.run(queue())
    assert values(replies) == [30.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert pools.harness.batches == [1, 4, 1]
    documents = [json.loads(reply.body) for reply in replies]
    assert {document["size"] for document in documents} == {1}
    workers = {name: {worker.pid for worker in infos} for name, infos in staged.stage_workers().items()}
    (model,) = staged.workers()
    assert {document["model"] for document in documents} == {model.pid}
    assert {document["pids"][0] for document in documents} <= workers.get("preprocess", {model.pid})
    assert {document["pids"][1] for document in documents} <= workers["postprocess"]


@after
def test_a_worker_of_the_last_stage_that_dies_or_hangs_fails_its_request_and_no_other(
    pools: Pools, make: Make, stages: dict[str, int]
) -> None:
    staged = pools.start(make(dedent(STEPS)), batch_size=4, response_timeout=5.0, **stages)
    assert values(pools.harness.run(ask(staged, [1.0, 23.0, 2.0, 25.0, 3.0]))) == [2.0, 500, 4.0, 500, 6.0]
    pools.harness.run(until(lambda: all(worker.state == "READY" for worker in staged.stage_workers()["postprocess"])))
    assert values(pools.harness.run(ask(staged, [4.0] * 4))) == [8.0] * 4


@after
def test_a_worker_with_the_model_that_dies_in_a_batch_loses_no_prepared_request(
    pools: Pools, make: Make, stages: dict[str, int]
) -> None:
    staged = pools.start(make(dedent(STEPS)), batch_size=4, **stages)
    assert values(pools.harness.run(ask(staged, [1.0, 13.0, 2.0, 3.0]))) == [2.0, 500, 4.0, 6.0]


@after
def test_outputs_that_wait_for_the_last_stage_are_bounded_and_expire(
    pools: Pools, make: Make, tmp_path: Path, stages: dict[str, int]
) -> None:
    staged = pools.start(make(holding(tmp_path)), batch_size=2, queue_size=50, **stages)
    last = staged._others["postprocess"]

    async def crowd() -> list[Any]:
        waiting = asyncio.ensure_future(ask(staged, [25.0] * 30))
        await until(lambda: last.pending >= 4 and not any(worker.jobs for worker in staged._inference._workers))
        # While there is room for one output, a worker with the model may get a batch, and the next one before the
        # outputs of the first are counted.
        assert last.pending < 4 + 2 * 2 * len(staged.workers())
        assert staged.pending > 20
        late = asyncio.get_running_loop().create_future()
        part = Part("body", "application/json", b"1.0")
        staged.submit(Job("id", {}, [part], late.set_result, time.monotonic() + 0.3))
        assert (await late).status == 503
        (tmp_path / "go").touch()
        return values(await waiting)

    assert pools.harness.run(crowd()) == [50.0] * 30


@after
def test_processes_of_all_stages_that_are_killed_leave_no_memory(
    pools: Pools, make: Make, tmp_path: Path, stages: dict[str, int]
) -> None:
    staged = pools.start(make(holding(tmp_path)), batch_size=4, **stages)
    last = staged._others["postprocess"]

    async def kill() -> list[Any]:
        waiting = asyncio.ensure_future(ask(staged, [25.0] * 2))
        await until(lambda: sum(len(worker.jobs) for worker in last._workers) == 2)
        behind = asyncio.ensure_future(ask(staged, [1.0, 2.0]))
        await until(lambda: last.pending == 2)
        assert pools.memories()
        for worker in (*staged.workers(), *(worker for infos in staged.stage_workers().values() for worker in infos)):
            kill_worker(worker.pid)
        return [values(await waiting), values(await behind)]

    assert pools.harness.run(kill()) == [[500, 500], [2.0, 4.0]]
    pools.harness.run(until(lambda: not pools.memories()))


OUTPUTS = """
import os, time
import numpy, torch
from ts.torch_handler.base_handler import BaseHandler

GO = "GO"

class Outputs(BaseHandler):
    def initialize(self, context):
        self.initialized = True

    def preprocess(self, rows):
        while not os.path.exists(GO):
            time.sleep(0.01)
        return torch.tensor([[float(row["body"]), len(rows)] for row in rows], requires_grad=True)

    def inference(self, data):
        lists = [{"number": number} for number in data[:, 0].tolist()]
        return {
            "tensor": lambda: data,
            "array": lambda: data.detach().numpy(),
            "tuple": lambda: (data, data[:, 0], data[:, :1]),
            "mapping": lambda: {"a": data, "b": [data[:, 1], data, data]},
            "list": lambda: lists,
            "ragged": lambda: [torch.ones(int(number)) for number in data[:, 0]],
            "mixed": lambda: {"a": data, "lists": lists},
            "one for each": lambda: [data[index : index + 1] for index in range(len(data))],
        }[KIND]()

    def postprocess(self, data):
        if KIND in ("tensor", "array"):
            return [{"value": float(number)} for number in data[:, 0]]
        if KIND == "tuple":
            return [{"value": float(number)} for number in data[1]]
        if KIND in ("mapping", "mixed"):
            return [{"value": float(number)} for number in data["a"][:, 0]]
        if KIND == "list":
            return [{"value": item["number"]} for item in data]
        return [{"value": float(item.sum() if KIND == "ragged" else item[0, 0])} for item in data]
"""


@pytest.mark.parametrize("kind", ["tensor", "array", "tuple", "mapping", "list", "ragged", "mixed", "one for each"])
def test_an_output_of_any_form_is_divided_among_requests_or_they_are_run_alone(
    pools: Pools, make: Make, tmp_path: Path, kind: str
) -> None:
    staged = pools.start(make(f"KIND = {kind!r}\n{holding(tmp_path, OUTPUTS)}"), batch_size=4, **AFTER)

    async def queue() -> list[Any]:
        first = asyncio.ensure_future(ask(staged, [0]))
        await until(lambda: any(worker.jobs for worker in staged._inference._workers))
        waiting = asyncio.ensure_future(ask(staged, [1, 2, 3, 4]))
        await until(lambda: staged._inference.pending == 4)
        (tmp_path / "go").touch()
        return values([*await first, *await waiting])

    assert pools.harness.run(queue()) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert pools.harness.batches == [1, 4]


OURS = """
import os
import torch
from torchmar_handlers.base import BaseHandler
from torchmar_handlers.request import BadRequest, NotFinite

class Ours(BaseHandler):
    def load_model(self, *args):
        self.model = torch.nn.Linear(1, 1)
        self.dtype = None

    def rows(self, request):
        return request.row["body"] if isinstance(request.row["body"], list) else None

    def decode(self, request):
        if isinstance(request.row["body"], str):
            raise BadRequest("no number")
        return torch.tensor([float(request.row["body"])])

    def inference(self, batch):
        if (batch == 14).any():
            raise ValueError("14 is no number")
        return {"double": batch * 2, "squares": (batch**2, batch**2)}

    def postprocess_handle(self, output, requests):
        if (output["double"] == 46).any():
            raise ValueError("23 is no number")
        if not output["double"].isfinite().all():
            raise NotFinite("the output is not finite")
        assert len(output["squares"][1]) == len(requests)
        return [
            {"value": float(number), "sent": request.row.get("body")}
            for number, request in zip(output["double"], requests, strict=True)
        ]

    def explain_handle(self, batch, requests):
        return [{"value": float(number)} for number in batch]
"""


@stages
def test_a_handler_over_ours_answers_with_its_requests_as_without_stages(
    pools: Pools, make: Make, stages: dict[str, int]
) -> None:
    mar = make(dedent(OURS))
    inputs = [1, [2, 3], "x", 14, 23, [1, 23, 5], 1e39, [4, 1e39], [], 5]
    whole, staged = pools.start(mar, Pool, batch_size=8), pools.start(mar, batch_size=8, **stages)
    expected = pools.harness.run(ask(whole, inputs))
    assert [reply.status for reply in expected] == [200, 200, 400, 503, 503, 503, 400, 400, 400, 200]
    for _ in range(2):
        assert pools.harness.run(ask(staged, inputs)) == expected
    explained = pools.harness.run(ask(staged, [1], {"explain": "True"}))
    assert explained == pools.harness.run(ask(whole, [1], {"explain": "True"}))


def test_the_times_of_all_stages_are_measured_once_for_each_request(pools: Pools, make: Make) -> None:
    pools.harness.measured.clear()
    staged = pools.start(make(dedent(OURS)), **BOTH)
    pools.harness.run(ask(staged, [1, "x", 14, 23]))
    counted = [name for name, *_ in pools.harness.measured if name == "HandlerSeconds"]
    assert len(counted) == 4


@pytest.mark.parametrize(
    ("code", "why"),
    {
        "a prediction of its own": (
            OURS + "\n    def predict_handle(self, batch, requests):\n        return [1] * len(requests)\n",
            "Ours has a predict_handle of its own, whose steps after the model cannot be separated",
        ),
        "two stages of its own": (
            "class Halves:\n    def initialize(self, context): ...\n    def handle(self, rows, context): return rows\n"
            "    def prepare_handle(self, data, context): return dict(enumerate(data)), {}\n"
            "    def finish_handle(self, prepared, context): return prepared\n",
            "Halves has no start_handle, so that its postprocess stays with the model",
        ),
    }.values(),
)  # fmt: skip
def test_a_handler_without_a_last_stage_is_refused_with_the_reason(
    pools: Pools, make: Make, code: str, why: str
) -> None:
    mar = make(dedent(code))
    assert why in pools.start(mar, up=False, **AFTER).failure.splitlines()[-1]
    assert pools.start(mar).ready == 1


def test_where_forks_are_allowed_the_model_is_loaded_once_for_both_stages(pools: Pools, make: Make) -> None:
    staged = pools.start(make(dedent(STEPS)), workers=2, fork=forking.ALLOWED)
    workers = (*staged.workers(), *staged.stage_workers()["preprocess"])
    assert len(workers) == 4
    assert len({forked_by(worker.pid).pid for worker in workers}) == 1
    alone = pools.start(
        make("import socket\nCONNECTION = socket.socket()\n" + dedent(STEPS)), workers=2, fork=forking.ALLOWED
    )
    workers = (*alone.workers(), *alone.stage_workers()["preprocess"])
    assert {forked_by(worker.pid).pid for worker in workers} == {pools.harness.fork_server.pid}
    assert values(pools.harness.run(ask(alone, [1.0] * 6))) == [2.0] * 6


def test_by_default_every_worker_of_either_stage_loads_the_model_itself(pools: Pools, make: Make) -> None:
    staged = pools.start(make(dedent(STEPS)), workers=2)
    workers = (*staged.workers(), *staged.stage_workers()["preprocess"])
    assert {forked_by(worker.pid).pid for worker in workers} == {pools.harness.fork_server.pid}
    assert values(pools.harness.run(ask(staged, [1.0] * 6))) == [2.0] * 6


def test_scaling_is_of_workers_with_the_model_and_to_none_ends_both(pools: Pools, make: Make) -> None:
    staged = pools.start(make(dedent(STEPS)))
    run = pools.harness.run
    assert run(staged.scale(2, 2))
    assert (len(staged.workers()), len(staged.stage_workers()["preprocess"]), staged.ready) == (2, 2, 2)
    assert values(run(ask(staged, [1.0] * 6))) == [2.0] * 6
    assert run(staged.scale(0, 0))
    assert (staged.workers(), staged.stage_workers(), staged.ready) == ([], {"preprocess": []}, 0)
    with pytest.raises(ApiError, match="has no worker"):
        run(ask(staged, [1.0]))
    assert run(staged.scale(1, 1))
    assert values(run(ask(staged, [1.0]))) == [2.0]


def test_no_field_of_a_client_is_taken_for_memory(pools: Pools, make: Make) -> None:
    staged = pools.start(make(dedent(STEPS)))
    for headers in ({}, {"explain": "True"}):
        replies = pools.harness.run(
            ask(staged, [1.0], headers, **dict.fromkeys(("torchmar source", "torchmar target"), "/proc/1/fd/1 1"))
        )
        assert values(replies) == ["explained" if headers else 2.0]


JOINED = """
import os, time
import torch
from pair import Pair
from ts.torch_handler.base_handler import BaseHandler

GO = "GO"

class Joined(BaseHandler):
    def initialize(self, context):
        self.initialized = True

    def preprocess(self, rows):
        what = rows[0]["body"]
        numbers = torch.tensor([what["numbers"]], dtype=getattr(torch, what.get("dtype", "float32")))
        return {
            "tensor": lambda: numbers,
            "array": lambda: numbers.numpy(),
            "tuple": lambda: (numbers, numbers.sum(1)),
            "named": lambda: Pair(numbers, torch.tensor([numbers.shape[1]])),
            "mapping": lambda: {"a": numbers, "b": (numbers, numbers)},
            "list": lambda: [numbers, "text"],
            "tokens": lambda: (numbers[0], "text"),
        }[what["as"]]()

    def inference(self, data):
        first = data["b"][1] if isinstance(data, dict) else data.values if isinstance(data, Pair) else data
        first = first[0] if isinstance(first, tuple | list) else torch.as_tensor(first)
        while not os.path.exists(GO):
            time.sleep(0.01)
        return first.double().sum(-1).reshape(-1)

    def postprocess(self, data):
        return [{"value": one} for one in data.tolist()]
"""


def test_only_similar_inputs_are_joined_and_others_are_run_alone(pools: Pools, make: Make, tmp_path: Path) -> None:
    pair = {"pair.py": "import collections\nPair = collections.namedtuple('Pair', 'values lengths')\n"}
    staged = pools.start(make(holding(tmp_path, JOINED), disk=pair, files={"pair.py": "pair.py"}), batch_size=64)
    inputs: list[dict[str, Any]] = [
        {"as": kind, "numbers": numbers, "dtype": dtype}
        for kind in ("tensor", "array", "tuple", "named", "mapping", "list", "tokens")
        for numbers in ([1, 2, 3], [4, 5, 6], [], [7])
        for dtype in ("float32", "int64")
    ] + [{"as": "tensor", "numbers": [1, 0], "dtype": dtype} for dtype in ("bfloat16", "bool", "uint8", "float16")]

    async def queue() -> list[Any]:
        waiting = asyncio.ensure_future(ask(staged, inputs))
        await until(lambda: staged._inference.pending + len(staged._inference._workers[0].jobs) == len(inputs))
        (tmp_path / "go").touch()
        return values(await waiting)

    assert pools.harness.run(queue()) == [float(sum(body["numbers"])) for body in inputs]
    assert len(pools.harness.batches) == 2


@pytest.mark.parametrize(
    ("code", "why"),
    {
        "a function": ("def handle(rows, context):\n    return rows", "its handler is a function"),
        "no steps": (
            "class Whole:\n    def initialize(self, context): ...\n    def handle(self, rows, context): return rows",
            "Whole has no preprocess",
        ),
        "a handle that does without": (
            "from ts.torch_handler.base_handler import BaseHandler\n"
            "class Whole(BaseHandler):\n    def initialize(self, context): ...\n"
            "    def handle(self, rows, context): return rows",
            "Whole has a handle of its own, which does not go through preprocess",
        ),
        "a step that takes more": (
            STEPS.replace("def inference(self, data)", "def inference(self, data, more)"),
            "Steps.inference does not take the data alone: missing a required argument: 'more'",
        ),
        "a handle over ours": (
            "from torchmar_handlers.base import BaseHandler\nclass Mine(BaseHandler):\n"
            "    def initialize(self, context): ...\n    def handle(self, rows, context): return rows",
            "Mine has a handle of its own, which prepare_handle and finish_handle lack",
        ),
    }.values(),
)  # fmt: skip
def test_a_handler_that_cannot_be_divided_gets_a_reason(pools: Pools, make: Make, code: str, why: str) -> None:
    staged = pools.start(make(dedent(code)), up=False)
    assert re.search(r"StagesError: (.*)", staged.failure.splitlines()[-1])
    assert why in staged.failure.splitlines()[-1]


def test_a_handle_that_does_the_three_steps_itself_is_divided(pools: Pools, make: Make) -> None:
    code = (
        STEPS
        + """
    def handle(self, data, context):
        return self.postprocess(self.inference(self.preprocess(data)))
"""
    )
    assert values(pools.harness.run(ask(pools.start(make(dedent(code))), [1.0, 2.0]))) == [2.0, 4.0]


@pytest.fixture(scope="module")
def registry_harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryHarness]:
    with RegistryHarness(tmp_path_factory.mktemp("registry")) as harness:
        yield harness


@pytest.fixture
def registered(registry_harness: RegistryHarness) -> Iterator[RegistryHarness]:
    yield registry_harness
    for name in list(registry_harness.registry.models):
        registry_harness.run(registry_harness.registry.unregister(name))


def test_the_archive_sets_the_number_of_workers_of_each_stage(registered: RegistryHarness, make: Make) -> None:
    make(dedent(STEPS), store=registered.store, config={"stages": {"preprocess": 3, "inference": 1}})
    pool = registered.register("made-1.0.mar").pool
    assert (len(pool.stage_workers()["preprocess"]), len(pool.workers())) == (3, 1)
    registered.run(registered.registry.scale("made", None, 2, 2))
    assert (len(pool.stage_workers()["preprocess"]), len(pool.workers())) == (3, 2)
    registered.run(registered.registry.unregister("made"))
    registered.run(registered.until(lambda: not registered.workers()))


@pytest.mark.parametrize("before", [{"preprocess": 1}, {}], ids=["all three", "without preprocess"])
def test_workers_of_all_stages_are_described_scaled_and_ended(
    registered: RegistryHarness, make: Make, before: dict[str, int]
) -> None:
    make(dedent(STEPS), store=registered.store, config={"stages": {**before, "inference": 1, "postprocess": 2}})
    version = registered.register("made-1.0.mar")
    described = descriptions.version(version)
    assert {name: len(workers) for name, workers in described["stages"].items()} == {**before, "postprocess": 2}
    postprocess = ModelVersion.of(described).stages["postprocess"]
    assert [worker.status for worker in postprocess] == ["READY"] * 2
    registered.run(registered.registry.scale("made", None, 2, 2))
    assert (len(version.pool.workers()), len(version.pool.stage_workers()["postprocess"])) == (2, 2)
    assert values(registered.run(ask(version.pool, [1.0] * 6))) == [2.0] * 6

    async def unregister() -> list[Any]:
        waiting = asyncio.ensure_future(ask(version.pool, [1.0] * 20))
        await asyncio.sleep(0)
        await registered.registry.unregister("made")
        return values(await waiting)

    assert registered.run(unregister()) == [2.0] * 20
    registered.run(registered.until(lambda: not registered.workers()))


def test_without_a_number_in_the_archive_the_registration_sets_the_models_workers(
    registered: RegistryHarness, make: Make
) -> None:
    make(dedent(STEPS), store=registered.store, config={"stages": {"preprocess": 1}})
    pool = registered.register("made-1.0.mar", 2).pool
    assert (len(pool.stage_workers()["preprocess"]), len(pool.workers())) == (1, 2)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"preproces": 2}, "there is no stage 'preproces'; neither preprocess nor postprocess is given"),
        ({"preprocess": 1, "postprocess": "2"}, "postprocess: '2' is no number of workers from 1 to 1024"),
        ({"preprocess": 0}, "preprocess: 0 is no number of workers from 1 to 1024"),
        ({"preprocess": 1, "inference": 0.5}, "inference: 0.5 is no number of workers from 1 to 1024"),
        ({"inference": 1}, "neither preprocess nor postprocess is given, so that there is no stage beside the model"),
    ],
)
def test_invalid_stages_are_rejected(registered: RegistryHarness, make: Make, given: Any, why: str) -> None:
    code = dedent(STEPS)
    make(code, store=registered.store, files={"config.yaml": "c.yaml"}, disk={"c.yaml": json.dumps({"stages": given})},
         config="c.yaml")  # fmt: skip
    status, message = registered.error_of(registered.registry.register(Registration("made-1.0.mar")))
    assert (status, why in message) == (400, True), message


def test_an_option_of_the_handler_with_the_name_of_a_stage_is_the_handlers(
    registered: RegistryHarness, make: Make
) -> None:
    make(store=registered.store, disk={"c.yaml": json.dumps({"stages": [{"name": "one"}]})}, config="c.yaml")
    assert type(registered.register("made-1.0.mar", 1).pool) is Pool
