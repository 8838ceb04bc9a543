"""torchmar.server.workers.pool answers every request exactly once and correctly, even if workers fail."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

from tests.support.pool_harness import OBEDIENT, Make, PoolHarness, ask, job, options_of, until
from tests.support.processes import forked_by
from torchmar.archive import Archive
from torchmar.server.api_error import ApiError
from torchmar.server.telemetry.system_metrics import cores
from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.jobs import Job, Part, Reply
from torchmar.server.workers.pool import Pool
from torchmar.worker.environment import worker_environment
from torchmar.worker.process import forking
from torchmar.worker.process.messages import ModelSpec


@pytest.fixture
def start_pool(pool_harness: PoolHarness, make: Make, tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    """Return a function that makes a pool of a handler, with workers."""
    pools: list[Pool] = []
    pool_harness.batches.clear()

    def build(code: str = OBEDIENT, workers: int = 1, *, up: bool = True, **options: Any) -> Pool:
        folder = tmp_path / f"model-{len(pools)}"
        with Archive(make(dedent(code))) as archive:
            archive.extract(folder)
            handler = archive.manifest.model.handler

        async def start() -> Pool:
            pool = Pool(pool_harness.fork_server, options_of(handler, folder, **options), pool_harness)
            pools.append(pool)
            assert await pool.scale(workers, workers) is up, pool.failure
            return pool

        return pool_harness.run(start())

    yield build

    async def end() -> None:
        for pool in pools:
            await pool.close()

    pool_harness.run(end())


def test_simultaneous_requests_share_a_batch_and_those_that_arrive_while_it_runs_the_next(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool(batch_size=4)
    assert pool_harness.run(ask(pool, list(range(10)))) == list(range(10))
    assert pool_harness.batches == [4, 4, 2]


def test_predictions_and_explanations_share_no_batch_and_keep_their_order(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool(batch_size=8)

    async def both() -> list[Any]:
        return await asyncio.gather(ask(pool, [1, 2]), ask(pool, [3], {"explain": "True"}), ask(pool, [4, 5]))

    assert pool_harness.run(both()) == [[1, 2], [3], [4, 5]]
    assert pool_harness.batches == [4, 1]


def test_a_long_batch_gets_all_threads_and_short_ones_after_it_get_one(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    code = """
    import os, time, torch

    def handle(rows, context):
        if rows is None: return
        until = time.process_time() + float(rows[0]["body"])
        while time.process_time() < until: pass
        return [{"value": [torch.get_num_threads(), os.environ.get("GOMP_SPINCOUNT")]}] * len(rows)
    """
    pool = start_pool(code)
    waiting = worker_environment(os.environ).get("GOMP_SPINCOUNT")
    assert pool_harness.run(ask(pool, [0])) == [[1, waiting]]
    pool_harness.run(ask(pool, [0.1]))
    assert pool_harness.run(ask(pool, [0])) == [[cores(), waiting]]
    assert [pool_harness.run(ask(pool, [0])) for _ in range(10)][-1] == [[1, waiting]]


def test_a_request_that_makes_its_batch_fail_fails_alone(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool(batch_size=4)
    assert pool_harness.run(ask(pool, [1, "raise", 2, 3])) == [1, 503, 2, 3]


def test_a_handler_that_supports_only_batches_of_one_is_right(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    code = """
    def handle(rows, context):
        return None if rows is None else [{"value": rows[0]["body"]}]
    """
    pool = start_pool(code, batch_size=4)
    assert pool_harness.run(ask(pool, [1, 2, 3, 4])) == [1, 2, 3, 4]
    assert pool_harness.run(ask(pool, [5, 6])) == [5, 6]


def test_a_request_that_kills_its_worker_fails_no_other(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool(batch_size=4)
    assert pool_harness.run(ask(pool, [1, "die", 2, 3])) == [1, 500, 2, 3]
    pool_harness.run(until(lambda: pool.ready == 1))
    assert pool_harness.run(ask(pool, [4])) == [4]


def test_a_worker_that_hangs_is_replaced_and_queued_requests_are_answered(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool(response_timeout=2.0)
    assert pool_harness.run(ask(pool, [600.0, 1, 2])) == [500, 1, 2]


def test_requests_in_a_batch_with_one_that_hangs_are_repeated(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool(batch_size=3, response_timeout=2.0)
    assert pool_harness.run(ask(pool, [1, 600.0, 2])) == [1, 500, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count so")
def test_a_request_beyond_a_workers_memory_limit_fails_alone(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    code = """
    import os

    def handle(rows, context):
        if rows is None:
            return None
        for row in rows:
            bytearray(row["body"])
        return [{"value": os.getpid()} for row in rows]
    """
    pool = start_pool(code, batch_size=2, memory_limit=1 << 30)
    (before,) = pool_harness.run(ask(pool, [1 << 20]))
    assert pool_harness.run(ask(pool, [2 << 30, 1 << 20])) == [507, before]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count so")
def test_a_memory_limit_below_the_need_of_every_worker_is_reported(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool(memory_limit=1 << 20, up=False)
    assert "torchmar_worker_memory=1MiB: a worker has" in pool.failure


def test_workers_that_end_as_soon_as_they_are_up_are_a_failure_and_start_later_each_time(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    code = f"""
    import os, time

    def end():
        with open({str(starts)!r}, "a") as file:
            file.write(f"{{time.monotonic()}}\\n")
        os._exit(7)

    os.register_at_fork(after_in_child=end)

    def handle(rows, context):
        return rows
    """
    pool = start_pool(code, workers=0, fork=forking.ALLOWED)
    pool_harness.run(pool.scale(1, 1))
    pool_harness.run(until(lambda: "times in a row" in pool.failure))
    times = [float(line) for line in starts.read_text().splitlines()]
    delays = [later - earlier for earlier, later in itertools.pairwise(times)]
    # At once at first, then after a second twice, as on TorchServe; a loop may wake up a moment early.
    assert len(delays) >= 3
    assert min(delays[-2:]) > 0.99


def test_a_full_queue_and_a_pool_without_workers_reject_at_once(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool(queue_size=2)

    async def crowd() -> list[Any]:
        waiting = asyncio.gather(ask(pool, [0.3]), ask(pool, [1]))
        await until(lambda: pool.busy and pool.pending == 1)
        more = asyncio.ensure_future(ask(pool, [2]))
        await until(lambda: pool.pending == 2)
        with pytest.raises(ApiError) as caught:
            pool.submit(job(3, print))
        assert caught.value.status == 503
        assert "has 2 requests waiting, as many as job_queue_size=2 admits" in caught.value.message
        assert caught.value.headers == {"Retry-After": "1"}
        return [*await waiting, await more]

    assert pool_harness.run(crowd()) == [[0.3], [1], [2]]
    assert pool_harness.run(pool.scale(0, 0))
    with pytest.raises(ApiError, match="has no worker to serve") as caught:
        pool.submit(job(3, print))
    assert "Retry-After" in caught.value.headers


def test_a_pool_whose_workers_do_not_load_rejects_queued_and_new_requests(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool("import time\ntime.sleep(0.5)\nimport no_such_module\n", workers=0)
    replies: list[Reply] = []

    async def wait() -> None:
        scaling = asyncio.ensure_future(pool.scale(1, 1))
        await asyncio.sleep(0)
        pool.submit(job(1, replies.append))  # while it may still load
        assert not await scaling

    pool_harness.run(wait())
    assert [reply.status for reply in replies] == [503]
    assert "has no worker that loads" in replies[0].message
    assert replies[0].headers == {"Retry-After": "1"}
    with pytest.raises(ApiError, match="has no worker that loads"):
        pool.submit(job(2, print))


def test_expired_requests_are_answered_and_cancelled_ones_dropped_and_neither_is_run(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool()
    replies: list[Reply] = []

    async def late() -> None:
        busy = asyncio.ensure_future(ask(pool, [0.5]))
        await until(lambda: pool.busy and not pool.pending)
        pool_harness.batches.clear()
        pool.submit(job("late", replies.append, deadline=time.monotonic() + 0.1))
        gone = job("gone", replies.append)
        pool.submit(gone)
        gone.cancelled = True
        await until(lambda: not pool.pending)
        await busy

    pool_harness.run(late())
    assert [reply.status for reply in replies] == [503]
    assert pool_harness.batches == [1]


def test_a_request_whose_deadline_cannot_be_met_is_rejected_at_once_and_others_are_run(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool()
    replies: list[Reply] = []

    async def crowd() -> list[Any]:
        pool.submit(job(1.0, replies.append, deadline=time.monotonic() + 60))  # measured
        await until(lambda: replies)
        busy = asyncio.ensure_future(ask(pool, [1.0, 1, 2]))
        await until(lambda: pool.pending == 2)
        with pytest.raises(
            ApiError, match=r'Model "m" cannot answer before the deadline .* 2 waiting before it'
        ) as error:
            pool.submit(job("late", replies.append, deadline=time.monotonic() + 0.4))
        assert error.value.status == 503
        assert int(error.value.headers["Retry-After"]) >= 1
        pool.submit(job("in time", replies.append, deadline=time.monotonic() + 60))
        await until(lambda: len(replies) == 2)
        return await busy

    assert pool_harness.run(crowd()) == [1.0, 1, 2]
    assert [json.loads(reply.body)["value"] for reply in replies] == [1.0, "in time"]


def test_an_idle_worker_runs_a_request_whatever_earlier_batches_took(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool()
    replies: list[Reply] = []

    async def again() -> None:
        pool.submit(job(2.0, replies.append, deadline=time.monotonic() + 60))
        await until(lambda: replies and not pool.busy)
        pool.submit(job(1, replies.append, deadline=time.monotonic() + 3.5))
        await until(lambda: len(replies) == 2)

    pool_harness.run(again())
    assert [reply.status for reply in replies] == [200, 200]


def test_forked_workers_share_the_loaded_model_and_start_at_once(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    code = """
    import os, torch
    WEIGHTS = torch.zeros(50_000_000) + 1  # 200 MB
    LOADED = os.getpid()

    def handle(rows, context):
        return None if rows is None else [{"value": [LOADED, float(WEIGHTS.sum())]} for _ in rows]
    """
    pool = start_pool(code, fork=forking.ALLOWED)
    assert pool_harness.run(pool.scale(4, 4))
    workers = {worker.pid for worker in pool.workers()}
    assert len(workers) == 4
    answers = pool_harness.run(ask(pool, [1] * 20))
    assert {tuple(each) for each in answers} == {(answers[0][0], 50_000_000.0)}
    assert answers[0][0] not in workers
    if hasattr(psutil.Process().memory_full_info(), "pss"):
        alone = [psutil.Process(pid).memory_full_info().uss for pid in workers]
        assert max(alone) < 100 << 20


@pytest.mark.parametrize(
    "code",
    ["import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n",
     "import socket\nCONNECTION = socket.socket()\n",
     "import subprocess\nCHILD = subprocess.Popen(['sleep', '600'])\n"],
    ids=["thread", "connection", "process"],
)  # fmt: skip
def test_a_model_with_threads_connections_or_processes_is_loaded_by_each_worker_even_if_forks_are_allowed(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool], code: str
) -> None:
    pool = start_pool(code + OBEDIENT, workers=2, fork=forking.ALLOWED)
    parents = {forked_by(worker.pid).pid for worker in pool.workers()}
    assert parents == {pool_harness.fork_server.pid}
    assert pool_harness.run(ask(pool, [1, 2, 3])) == [1, 2, 3]


def test_a_model_that_does_not_load_is_reported_with_its_traceback_and_retried(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    flag = tmp_path / "now"
    code = f"""
    import pathlib
    def handle(rows, context):
        if not pathlib.Path({str(flag)!r}).exists(): raise ValueError("not yet")
        return None if rows is None else [{{"value": row["body"]}} for row in rows]
    """
    pool = start_pool(code, up=False)
    assert pool.failure.endswith("ValueError: not yet")
    assert "torchmar" not in pool.failure
    flag.touch()
    pool_harness.run(until(lambda: pool.ready))
    assert pool.failure == ""
    assert pool_harness.run(ask(pool, [1])) == [1]


def test_removed_workers_finish_their_batches(pool_harness: PoolHarness, start_pool: Callable[..., Pool]) -> None:
    pool = start_pool(workers=3)

    async def shrink() -> list[Any]:
        waiting = asyncio.ensure_future(ask(pool, [0.3, 0.3, 0.3]))
        await until(lambda: pool.busy and not pool.pending)
        assert await pool.scale(1, 1)
        assert pool.ready == 1
        return await waiting

    assert pool_harness.run(shrink()) == [0.3, 0.3, 0.3]


def test_an_end_of_the_fork_server_is_survived(pool_harness: PoolHarness, start_pool: Callable[..., Pool]) -> None:
    pool = start_pool(workers=2)
    assert pool_harness.fork_server.pid
    os.kill(pool_harness.fork_server.pid, 9)
    pool_harness.run(until(lambda: pool.ready == 0))
    pool_harness.run(until(lambda: pool.ready == 2))
    assert pool_harness.run(ask(pool, [1, 2])) == [1, 2]


def test_a_model_that_is_being_loaded_when_the_fork_server_ends_is_loaded_again(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    code = f"""
    import pathlib, time
    FLAG = pathlib.Path({str(flag)!r})
    if not FLAG.exists():
        FLAG.touch()
        time.sleep(600)
    """
    pool = start_pool(dedent(code) + OBEDIENT, workers=0)

    async def scenario() -> None:
        scaled = asyncio.ensure_future(pool.scale(1, 1))
        await until(flag.exists)
        assert pool_harness.fork_server.pid
        os.kill(pool_harness.fork_server.pid, 9)
        assert await scaled
        assert pool.failure == ""
        assert await ask(pool, [1]) == [1]

    pool_harness.run(scenario())


def test_a_model_process_that_ends_after_loading_is_a_worker_that_has_ended(
    pool_harness: PoolHarness, tmp_path: Path
) -> None:
    (tmp_path / "handler.py").write_text(OBEDIENT)

    async def scenario() -> None:
        model = ModelSpec(name="m", model_dir=str(tmp_path), handler="handler.py")
        process = await pool_harness.fork_server.spawn(model, print)
        assert await process.loaded(60) == "forks are not configured"
        assert pool_harness.fork_server.pid
        os.kill(pool_harness.fork_server.pid, 9)
        await until(lambda: process.closed)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process.serve(theirs).close()
            assert ours.recv(1) == b""

    pool_harness.run(scenario())


@pytest.mark.unforked
def test_a_fork_server_that_ends_before_it_has_loaded_torch_is_started_again(pool_harness: PoolHarness) -> None:
    async def scenario() -> None:
        fork_server = ForkServer()
        started = asyncio.ensure_future(fork_server.start())
        await until(lambda: fork_server._supervisor)
        assert fork_server._supervisor
        supervisor = psutil.Process(fork_server._supervisor.pid)
        await until(supervisor.children)
        supervisor.children()[0].kill()
        await started
        assert fork_server.pid
        fork_server.close()

    pool_harness.run(scenario())


@pytest.mark.parametrize("fork", [forking.NEVER, forking.ALLOWED])
def test_without_pidfds_the_parent_that_reaps_ends_a_worker(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool], fork: str
) -> None:
    pool = start_pool(response_timeout=1.0, fork=fork)
    (worker,) = pool._workers
    assert worker._process
    process = psutil.Process(worker._process.pid)
    if worker._process._pidfd >= 0:
        os.close(worker._process._pidfd)
        worker._process._pidfd = -1
    assert pool_harness.run(ask(pool, [600.0])) == [500]
    pool_harness.run(until(lambda: not process.is_running()))


def test_a_closed_pool_leaves_no_process_and_no_open_file(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    me, fork_server = psutil.Process(), psutil.Process(pool_harness.fork_server.pid)
    pool_harness.run(until(lambda: not fork_server.children()))
    before = me.num_fds()
    pool = start_pool(workers=3)

    async def close() -> None:
        waiting = asyncio.ensure_future(ask(pool, [5.0] * 5))
        await until(lambda: pool.busy)
        await pool.close()
        assert await waiting == [503] * 5
        await until(lambda: not fork_server.children())
        await until(lambda: me.num_fds() <= before)

    pool_harness.run(close())


def test_parts_of_a_streamed_response_are_sent_at_once(
    pool_harness: PoolHarness, start_pool: Callable[..., Pool]
) -> None:
    code = """
    from ts.handler_utils.utils import send_intermediate_predict_response
    def handle(rows, context):
        if rows is None: return
        for number in range(3):
            parts = [f"{number} of {row['body']}, " for row in rows]
            send_intermediate_predict_response(parts, context.request_ids, "Intermediate", 200, context)
        return ["end"] * len(rows)
    """
    pool = start_pool(code, batch_size=2)
    replies_of: dict[int, list[Reply]] = {0: [], 1: []}

    async def both() -> None:
        for number in replies_of:
            pool.submit(job(number, replies_of[number].append))
        await until(lambda: all(replies and not replies[-1].more for replies in replies_of.values()))

    pool_harness.run(both())
    for number, replies in replies_of.items():
        assert b"".join(reply.body for reply in replies).decode() == f"0 of {number}, 1 of {number}, 2 of {number}, end"
        assert [reply.more for reply in replies] == [True, True, True, False]
        assert replies[0].headers["ts_stream_next"] == "true"


def test_metrics_of_handlers_are_reported(pool_harness: PoolHarness, start_pool: Callable[..., Pool]) -> None:
    code = """
    def handle(rows, context):
        if rows is None: return
        context.metrics.add_counter("Rows", len(rows))
        return [{"value": 1} for _ in rows]
    """
    pool_harness.measured.clear()
    pool_harness.run(ask(start_pool(code), [1]))
    (only,) = pool_harness.measured
    assert only[:4] == ["Rows", "Count", 1.0, "COUNTER"]
    assert ["ModelName", "m"] in only[4]


def test_large_bodies_are_received_and_sent_whole(pool_harness: PoolHarness, start_pool: Callable[..., Pool]) -> None:
    code = """
    def handle(rows, context):
        return None if rows is None else [bytes(row["body"][::-1]) for row in rows]
    """
    pool = start_pool(code, batch_size=3)
    sent = [os.urandom(size) for size in (1, 70_000, 20_000_000)]

    async def all_of_them() -> list[bytes]:
        futures: list[asyncio.Future[Reply]] = [asyncio.get_running_loop().create_future() for _ in sent]
        for body, future in zip(sent, futures, strict=True):
            pool.submit(Job("id", {}, [Part("body", "application/octet-stream", body)], future.set_result))
        return [reply.body for reply in await asyncio.gather(*futures)]

    assert pool_harness.run(all_of_them()) == [body[::-1] for body in sent]
    assert pool_harness.batches == [3]
