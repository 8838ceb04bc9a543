"""torchmar.server.workers.staged_pool gives the answers of one process, with decoding in separate processes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

from tests.support.paths import SAMPLES
from tests.support.pool_harness import Make, PoolHarness, options_of, until
from tests.support.processes import forked_by, kill_worker
from tests.support.registry_harness import RegistryHarness
from torchmar.archive import Archive
from torchmar.comparison import differences
from torchmar.exchange import Response
from torchmar.recipe import Sample
from torchmar.server.api_error import ApiError
from torchmar.server.models.registry import Registration
from torchmar.server.workers import staged_pool
from torchmar.server.workers.jobs import Job, Part, Reply
from torchmar.server.workers.pool import Pool
from torchmar.server.workers.staged_pool import StagedPool
from torchmar.worker.process import forking

pytestmark = pytest.mark.skipif(not staged_pool.available(), reason="stages are Linux's")

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
            values.append(torch.tensor([what, float(os.getpid())], dtype=torch.float64))
        return torch.stack(values)

    def inference(self, data):
        if (data[:, 0] == 13).any():
            os._exit(3)
        while (data[:, 0] == 15).any() and not os.path.exists(GO):
            time.sleep(0.01)
        if (data[:, 0] == 14).any():
            raise ValueError("14 is no number")
        return data * torch.tensor([2.0, 1.0], dtype=torch.float64)

    def postprocess(self, data):
        return [{"value": one[0].item(), "size": len(data), "pids": [int(one[1]), os.getpid()]} for one in data]

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
        options = {"preprocess_workers": 2 if kind is StagedPool else 0, **options}

        async def start() -> Pool:
            pool = kind(self.harness.fork_server, options_of(handler, folder, **options), self.harness)
            self._made.append(pool)
            assert await pool.scale(workers, workers) is up, pool.failure
            return pool

        return self.harness.run(start())

    async def close(self) -> None:
        for pool in self._made:
            await pool.close()


@pytest.fixture
def pools(pool_harness: PoolHarness, tmp_path: Path) -> Iterator[Pools]:
    """Start pools; afterwards neither they nor memory of theirs is there."""
    pool_harness.batches.clear()
    pools = Pools(pool_harness, tmp_path)
    yield pools
    pool_harness.run(pools.close())
    pool_harness.run(until(lambda: not memories()))


def memories() -> list[str]:
    """Return the shared memory that this process or a worker has open or mapped."""
    targets = []
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(OSError):  # it has ended
            targets += Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            for file in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(OSError):  # it was closed
                    targets.append(str(file.readlink()))
    return [target for target in targets if "memfd:torchmar" in target]


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


def test_a_handler_gives_the_same_answers_in_every_protocol_good_and_bad_mixed(pools: Pools, digits: Path) -> None:
    staged, whole = pools.start(digits, batch_size=8), pools.start(digits, Pool, batch_size=8)
    expected = pools.harness.run(ask(whole, PROTOCOLS))
    assert [wanted.status for wanted in expected] == [200] * 4 + [400, 200, 400, 200, 400]
    for _ in range(3):
        for wanted, other in zip(expected, pools.harness.run(ask(staged, PROTOCOLS)), strict=True):
            assert wanted._replace(body=b"") == other._replace(body=b"")
            # Rows of a batch of another size may differ in their last digit.
            sample = Sample(json={}, status=wanted.status, expect=json.loads(wanted.body), tolerance=1e-5)
            assert differences(sample, Response(other.status, other.body)) == []


def test_explanations_and_descriptions_are_the_same(pools: Pools, digits: Path) -> None:
    staged, whole = pools.start(digits, batch_size=4), pools.start(digits, Pool, batch_size=4)
    for headers in ({"explain": "True"}, {"describe": "True"}):
        assert pools.harness.run(ask(staged, [IMAGE] * 2, headers)) == pools.harness.run(
            ask(whole, [IMAGE] * 2, headers)
        )


def test_bad_requests_never_reach_the_model(pools: Pools, digits: Path) -> None:
    staged = pools.start(digits, batch_size=8)
    replies = pools.harness.run(ask(staged, [b"no image", IMAGE, b"none either"]))
    assert [reply.status for reply in replies] == [400, 200, 400]
    assert pools.harness.batches == [1]


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


def test_three_steps_answer_as_without_stages(pools: Pools, make: Make) -> None:
    mar = make(dedent(STEPS))
    inputs = [1.0, "no number", 14.0, 2.0, None]
    whole, staged = pools.start(mar, Pool), pools.start(mar)
    expected = pools.harness.run(ask(whole, inputs))
    replies = pools.harness.run(ask(staged, inputs))
    assert values(replies) == values(expected) == [2.0, 503, 503, 4.0, 503]
    failed = [reply for reply in replies if reply.status != 200]
    assert failed == [wanted for wanted in expected if wanted.status != 200]
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
    assert {first for first, _ in pids} == {worker.pid for worker in staged.preprocess_workers()}
    assert {second for _, second in pids} == {worker.pid for worker in staged.workers()}


def test_a_worker_of_the_first_stage_that_dies_takes_its_request_along_and_no_other(pools: Pools, make: Make) -> None:
    staged = pools.start(make(dedent(STEPS)), batch_size=4)
    assert values(pools.harness.run(ask(staged, [1.0, "die first", 2.0, 3.0]))) == [2.0, 500, 4.0, 6.0]
    pools.harness.run(until(lambda: all(worker.state == "READY" for worker in staged.preprocess_workers())))
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
        assert memories()
        for worker in (*staged.preprocess_workers(), *staged.workers()):
            kill_worker(worker.pid)
        return [values(await waiting), values(await behind)]

    assert pools.harness.run(kill()) == [[500, 500], [2.0, 4.0]]
    pools.harness.run(until(lambda: not memories()))


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
        assert len(memories()) == 2
        flag.touch()
        await busy
        assert replies == []

    pools.harness.run(leave())
    pools.harness.run(until(lambda: not memories()))


def test_the_number_of_preprocessed_requests_is_bounded(pools: Pools, make: Make, tmp_path: Path) -> None:
    staged = pools.start(make(holding(tmp_path)), batch_size=2, queue_size=50)

    async def crowd() -> list[Any]:
        waiting = asyncio.ensure_future(ask(staged, [15.0] * 40))
        await until(
            lambda: staged._inference.pending >= 4 and not any(worker.jobs for worker in staged._preprocess._workers)
        )
        assert staged._inference.pending <= 4 + 2
        assert staged.pending > 30
        with pytest.raises(ApiError):
            await ask(staged, [1.0] * 20)
        (tmp_path / "go").touch()
        return values(await waiting)

    assert pools.harness.run(crowd()) == [30.0] * 40


def test_where_forks_are_allowed_the_model_is_loaded_once_for_both_stages(pools: Pools, make: Make) -> None:
    staged = pools.start(make(dedent(STEPS)), workers=2, fork=forking.ALLOWED)
    workers = (*staged.workers(), *staged.preprocess_workers())
    assert len(workers) == 4
    assert len({forked_by(worker.pid).pid for worker in workers}) == 1
    alone = pools.start(
        make("import socket\nCONNECTION = socket.socket()\n" + dedent(STEPS)), workers=2, fork=forking.ALLOWED
    )
    workers = (*alone.workers(), *alone.preprocess_workers())
    assert {forked_by(worker.pid).pid for worker in workers} == {pools.harness.fork_server.pid}
    assert values(pools.harness.run(ask(alone, [1.0] * 6))) == [2.0] * 6


def test_by_default_every_worker_of_either_stage_loads_the_model_itself(pools: Pools, make: Make) -> None:
    staged = pools.start(make(dedent(STEPS)), workers=2)
    workers = (*staged.workers(), *staged.preprocess_workers())
    assert {forked_by(worker.pid).pid for worker in workers} == {pools.harness.fork_server.pid}
    assert values(pools.harness.run(ask(staged, [1.0] * 6))) == [2.0] * 6


def test_scaling_is_of_workers_with_the_model_and_to_none_ends_both(pools: Pools, make: Make) -> None:
    staged = pools.start(make(dedent(STEPS)))
    run = pools.harness.run
    assert run(staged.scale(2, 2))
    assert (len(staged.workers()), len(staged.preprocess_workers()), staged.ready) == (2, 2, 2)
    assert values(run(ask(staged, [1.0] * 6))) == [2.0] * 6
    assert run(staged.scale(0, 0))
    assert (staged.workers(), staged.preprocess_workers(), staged.ready) == ([], [], 0)
    with pytest.raises(ApiError, match="has no worker"):
        run(ask(staged, [1.0]))
    assert run(staged.scale(1, 1))
    assert values(run(ask(staged, [1.0]))) == [2.0]


def test_no_field_of_a_client_is_taken_for_memory(pools: Pools, make: Make) -> None:
    staged = pools.start(make(dedent(STEPS)))
    for headers in ({}, {"explain": "True"}):
        replies = pools.harness.run(ask(staged, [1.0], headers, **{"torchmar stage": "/proc/1/fd/1 1"}))
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
    assert (len(pool.preprocess_workers()), len(pool.workers())) == (3, 1)
    registered.run(registered.registry.scale("made", None, 2, 2))
    assert (len(pool.preprocess_workers()), len(pool.workers())) == (3, 2)
    registered.run(registered.registry.unregister("made"))
    registered.run(registered.until(lambda: not registered.workers()))


def test_without_a_number_in_the_archive_the_registration_sets_the_models_workers(
    registered: RegistryHarness, make: Make
) -> None:
    make(dedent(STEPS), store=registered.store, config={"stages": {"preprocess": 1}})
    pool = registered.register("made-1.0.mar", 2).pool
    assert (len(pool.preprocess_workers()), len(pool.workers())) == (1, 2)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"preproces": 2}, "there is no stage 'preproces'; preprocess is missing"),
        ({"preprocess": 0}, "preprocess: 0 is no number of workers from 1 to 1024"),
        ({"preprocess": 1, "inference": 0.5}, "inference: 0.5 is no number of workers from 1 to 1024"),
        ({"inference": 1}, "preprocess is missing"),
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
