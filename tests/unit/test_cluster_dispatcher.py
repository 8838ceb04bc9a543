"""Requests of a front and the replicas that run them, over real sockets: admission, choice, repetition, failures."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from tests.support import pool_harness
from tests.support.manual_replica import NODE, ManualReplica
from torchmar.cluster.directory import ReplicaState
from torchmar.cluster.dispatcher import BATCHES, Dispatcher
from torchmar.cluster.link import ReplicaLink
from torchmar.server.api_error import ApiError
from torchmar.server.workers.deadline_error import DeadlineError
from torchmar.server.workers.jobs import Job, Part, Reply
from torchmar.server.workers.pool_options import PoolOptions
from torchmar.worker.process.messages import MetricUpdate

OPTIONS = PoolOptions(name="m", version="1.0", handler="handler.py", folder="", batch_size=2, queue_size=2)


class Pool:
    """The owner and the observer of a dispatcher: records its events."""

    def __init__(self) -> None:
        self.failure = ""
        self.problems: list[str] = []
        self.idle = 0
        self.batches: list[int] = []
        self.deaths: list[str] = []
        self.replies: list[Reply] = []

    def on_link(self, link: ReplicaLink) -> None:
        self.problems += [link.problem] if link.problem else []

    def on_idle(self) -> None:
        self.idle += 1

    def on_batch(
        self, name: str, version: str, size: int, queue_seconds: Sequence[float], handler_seconds: float
    ) -> None:
        self.batches.append(size)

    def on_load(self, name: str, version: str, worker: str, seconds: float) -> None: ...

    def on_load_failed(self, name: str, version: str, worker: str, failure: str) -> None: ...

    def on_death(self, name: str, version: str, worker: str) -> None:
        self.deaths.append(worker)

    def on_unregister(self, name: str, version: str) -> None: ...

    def on_metrics(self, name: str, version: str, updates: Sequence[MetricUpdate]) -> None: ...

    def job(self) -> Job:
        return Job("a", {}, [Part("body", "text/plain", b"1")], self.replies.append)

    @property
    def statuses(self) -> list[int]:
        return [reply.status for reply in self.replies]


async def until(condition: Callable[[], object]) -> None:
    await asyncio.wait_for(pool_harness.until(condition), 20)


def run(
    scenario: Callable[[Pool, Dispatcher, list[ManualReplica]], Awaitable[None]],
    replicas: int = 1,
    options: PoolOptions = OPTIONS,
) -> None:
    async def body() -> None:
        pool, running = Pool(), [ManualReplica() for _ in range(replicas)]
        dispatcher = Dispatcher(options, pool, NODE, pool)
        try:
            dispatcher.connect(await listed(running))
            await until(lambda: dispatcher.ready == replicas)
            await scenario(pool, dispatcher, running)
        finally:
            dispatcher.close()
            for replica in running:
                replica.listener.close()

    asyncio.run(body())


async def listed(replicas: Sequence[ManualReplica]) -> dict[str, ReplicaState]:
    return {
        f"r{number}": ReplicaState(id=f"r{number}", node="n", state="READY", endpoint=await replica.open())
        for number, replica in enumerate(replicas)
    }


def test_requests_are_spread_and_answered() -> None:
    async def scenario(pool: Pool, dispatcher: Dispatcher, replicas: list[ManualReplica]) -> None:
        for _ in range(4):
            dispatcher.admit("", None)
            dispatcher.enqueue(pool.job())
        await until(lambda: [len(replica.jobs) for replica in replicas] == [2, 2])  # a batch each
        assert dispatcher.busy
        assert dispatcher.pending == 0
        for replica in replicas:
            for job in replica.jobs:
                job.on_reply(Reply(200, b"1"))
        await until(lambda: pool.statuses == [200] * 4)
        assert not dispatcher.busy
        assert pool.idle
        assert pool.batches

    run(scenario, replicas=2)


def test_a_replica_has_two_batches_and_further_requests_wait_up_to_the_limit() -> None:
    async def scenario(pool: Pool, dispatcher: Dispatcher, replicas: list[ManualReplica]) -> None:
        for _ in range(4):
            dispatcher.admit("", None)
            dispatcher.enqueue(pool.job())
        await until(lambda: len(replicas[0].jobs) == BATCHES * OPTIONS.batch_size)
        assert dispatcher.pending == 2  # those of the second batch wait for the worker, too
        with pytest.raises(ApiError, match="has 2 requests waiting"):
            dispatcher.admit("", None)
        dispatcher.enqueue(pool.job())
        replicas[0].jobs[0].on_reply(Reply(200, b"1"))
        await until(lambda: len(replicas[0].jobs) == 5)

    run(scenario)


def test_job_tickets_admit_no_waiting_requests() -> None:
    async def scenario(pool: Pool, dispatcher: Dispatcher, replicas: list[ManualReplica]) -> None:
        for _ in range(2):
            dispatcher.admit("", None)
            dispatcher.enqueue(pool.job())
        with pytest.raises(ApiError, match="useJobTicket"):
            dispatcher.admit("", None)

    run(scenario, options=replace(OPTIONS, job_tickets=True))


def test_a_deadline_that_cannot_be_met_is_rejected_and_one_that_passes_gets_an_error() -> None:
    async def scenario(pool: Pool, dispatcher: Dispatcher, replicas: list[ManualReplica]) -> None:
        with pytest.raises(DeadlineError):
            dispatcher.admit("", time.monotonic() - 1)
        assert dispatcher.batch_times is not None
        replicas[0].listener.set_ready(False)
        await until(lambda: not dispatcher.ready)
        job = pool.job()
        job.deadline = time.monotonic() + 0.05
        dispatcher.enqueue(job)
        await until(lambda: pool.statuses == [503])
        assert not replicas[0].jobs

    run(scenario)


def test_requests_of_a_replica_that_ends_are_repeated_and_those_that_have_parts_fail() -> None:
    async def scenario(pool: Pool, dispatcher: Dispatcher, replicas: list[ManualReplica]) -> None:
        for _ in range(4):
            dispatcher.enqueue(pool.job())
        await until(lambda: all(len(replica.jobs) == 2 for replica in replicas))
        ended, other = replicas
        ended.jobs[0].on_reply(Reply(200, b"part", more=True))
        await until(lambda: pool.replies)
        ended.listener.close()
        await until(lambda: len(other.jobs) == 3)
        await until(lambda: pool.statuses == [200, 500])
        assert pool.replies[1].message == "Worker died."
        assert len(pool.deaths) == 1

    run(scenario, replicas=2)


def test_requests_fail_where_no_replica_loads_and_not_while_one_is_ready() -> None:
    async def scenario(pool: Pool, dispatcher: Dispatcher, replicas: list[ManualReplica]) -> None:
        pool.failure = "why"
        dispatcher.admit("", None)
        dispatcher.enqueue(pool.job())
        dispatcher.fail_unless_ready()
        await until(lambda: replicas[0].jobs)
        replicas[0].listener.set_ready(False)
        await until(lambda: not dispatcher.ready)
        with pytest.raises(ApiError, match="no worker that loads"):
            dispatcher.admit("", None)
        dispatcher.enqueue(pool.job())
        await until(lambda: pool.statuses == [503])  # the other one is at the replica
        assert dispatcher.busy

    run(scenario)


def test_the_connection_to_a_replica_that_is_gone_is_closed_and_one_that_cannot_be_reached_is_reported() -> None:
    async def scenario(pool: Pool, dispatcher: Dispatcher, replicas: list[ManualReplica]) -> None:
        late = ManualReplica()
        states = await listed([late])
        late.listener.close()
        dispatcher.connect({"late": replace(states["r0"], id="late")})
        assert list(dispatcher.links) == ["late"]
        assert dispatcher.ready == 0
        await until(lambda: pool.problems)

    run(scenario)


def test_a_closed_dispatcher_has_answered_all_requests_and_connects_no_more() -> None:
    async def scenario(pool: Pool, dispatcher: Dispatcher, replicas: list[ManualReplica]) -> None:
        for _ in range(5):
            dispatcher.enqueue(pool.job())
        await until(lambda: len(replicas[0].jobs) == 4)
        dispatcher.close()
        assert pool.statuses == [503] * 5
        assert not dispatcher.busy
        dispatcher.connect(await listed([ManualReplica()]))
        assert not dispatcher.links
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(until(lambda: len(pool.replies) > 5), 0.05)
        assert len(pool.replies) == 5

    run(scenario)
