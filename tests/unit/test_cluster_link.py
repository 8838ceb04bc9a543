"""A front's connection to a replica, over real sockets: proofs, requests, streams, cancellation, losses and drains."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import certify
from tests.support.manual_replica import NODE, ManualReplica
from torchmar.cluster import channel
from torchmar.cluster.channel import Channel
from torchmar.cluster.link import ReplicaLink
from torchmar.server.workers.batch_times import BatchTimes
from torchmar.server.workers.jobs import Job, Part, Reply

OTHER_NODE = "another node"
LARGE = bytes(range(256)) * (1 << 13)  # received into memory of its own


class Front:
    """The owner of a link: records its events."""

    def __init__(self) -> None:
        self.lost: list[tuple[Job, bool]] = []
        self.batches: list[Any] = []
        self.replies: list[Reply] = []
        self.batch_times: BatchTimes | None = None
        self.changed = asyncio.Event()

    def on_state(self, link: ReplicaLink) -> None:
        self.changed.set()

    def on_replies(self, link: ReplicaLink, batches: Sequence[Any], updates: Sequence[Any]) -> None:
        self.batches += batches
        self.changed.set()

    def on_lost(self, link: ReplicaLink, unanswered: Sequence[tuple[Job, bool]]) -> None:
        self.lost += unanswered
        self.changed.set()

    def job(self, content: bytes = b"1", name: str = "a") -> Job:
        return Job(name, {"x": "1"}, [Part("body", "text/plain", content)], self.replies.append)

    async def until(self, condition: Callable[[], object]) -> None:
        async def wait() -> None:
            while not condition():
                self.changed.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 0.02)

        await asyncio.wait_for(wait(), 20)


def run(scenario: Callable[[Front, ManualReplica, ReplicaLink], Awaitable[None]], node_id: str = OTHER_NODE) -> None:
    async def body() -> None:
        front, replica = Front(), ManualReplica()
        link = ReplicaLink("r", await replica.open(), node_id, 4, front)
        try:
            await front.until(lambda: link.ready)
            await scenario(front, replica, link)
        finally:
            link.close()
            replica.listener.close()

    asyncio.run(body())


@pytest.mark.parametrize("node_id", [NODE, OTHER_NODE], ids=["unix", "tcp"])
def test_requests_and_replies_of_any_size_arrive_unchanged(node_id: str) -> None:
    async def scenario(front: Front, replica: ManualReplica, link: ReplicaLink) -> None:
        job = front.job(LARGE)
        job.deadline = asyncio.get_running_loop().time() + 60
        job.since -= 50
        link.send([front.job(b""), job])
        assert link.room == 2
        await front.until(lambda: len(replica.jobs) == 2)
        received = replica.jobs[1]
        assert [tuple(part) for part in received.inputs] == [("body", "text/plain", LARGE)]
        assert (received.request_id, received.headers, received.isolated) == ("a", {"x": "1"}, False)
        assert received.deadline is not None
        assert 50 <= asyncio.get_running_loop().time() - received.since < 60  # its wait at the front counts
        replica.jobs[1].on_reply(Reply(418, LARGE, "a/b", {"y": "2"}, message="why"))
        replica.jobs[0].on_reply(Reply(200, b""))
        await front.until(lambda: len(front.replies) == 2)
        assert front.replies == [Reply(418, LARGE, "a/b", {"y": "2"}, False, "why"), Reply(200, b"")]
        assert front.batches == [[1, [0.0], 0.5]]
        assert link.room == 4

    run(scenario, node_id)


def test_a_request_that_is_not_accepted_gets_the_error() -> None:
    async def scenario(front: Front, replica: ManualReplica, link: ReplicaLink) -> None:
        link.send([front.job(name="refused")])
        await front.until(lambda: front.replies)
        assert (front.replies[0].status, front.replies[0].message) == (503, "no room")

    run(scenario)


def test_the_time_of_a_batch_is_measured_and_that_of_a_refusal_is_not() -> None:
    async def scenario(front: Front, replica: ManualReplica, link: ReplicaLink) -> None:
        front.batch_times = BatchTimes()
        link.send([front.job(name="refused")])
        await front.until(lambda: front.replies)
        assert front.batch_times.mean("", 1) == 0.0
        started = asyncio.get_running_loop().time()
        link.send([front.job(), front.job(), front.job()])
        assert started <= link.batch_started
        await front.until(lambda: len(replica.jobs) == 3)
        await asyncio.sleep(0.1)
        for job in replica.jobs[:2]:
            job.on_reply(Reply(200, b""))
        await front.until(lambda: len(link.jobs) == 1)
        # The replica begins with the next batch when it has answered the one before.
        assert link.batch_started >= started + 0.1
        assert front.batch_times.mean("", 2) == pytest.approx(link.batch_started - started, abs=0.05)

    run(scenario)


def test_a_cancelled_request_is_cancelled_at_the_replica() -> None:
    async def scenario(front: Front, replica: ManualReplica, link: ReplicaLink) -> None:
        job = front.job()
        link.send([job, front.job()])
        await front.until(lambda: len(replica.jobs) == 2)
        job.cancelled = True
        link.check(asyncio.get_running_loop().time(), 2)
        await front.until(lambda: replica.jobs[0].cancelled and replica.listener.demand == 2)
        assert not replica.jobs[1].cancelled
        assert link.room == 3

    run(scenario)


def test_requests_of_a_lost_connection_are_returned_and_cancelled() -> None:
    async def scenario(front: Front, replica: ManualReplica, link: ReplicaLink) -> None:
        first, second = front.job(), front.job()
        link.send([first, second])
        await front.until(lambda: len(replica.jobs) == 2)
        replica.jobs[1].on_reply(Reply(200, b"part", more=True))
        await front.until(lambda: front.replies)
        replica.listener.close()
        await front.until(lambda: front.lost)
        assert front.lost == [(first, False), (second, True)]
        assert not link.ready
        assert link.room == 0
        await front.until(lambda: replica.jobs[0].cancelled)

    run(scenario)


def test_a_lost_connection_is_opened_again() -> None:
    async def scenario(front: Front, replica: ManualReplica, link: ReplicaLink) -> None:
        link._channel.abort()  # type: ignore[union-attr]  # as a network does
        await front.until(lambda: not link.ready)
        await front.until(lambda: link.ready)
        link.send([front.job()])
        await front.until(lambda: replica.jobs)

    run(scenario)


def test_a_replica_that_ends_answers_what_it_has_and_gets_no_more() -> None:
    async def scenario(front: Front, replica: ManualReplica, link: ReplicaLink) -> None:
        link.send([front.job()])
        await front.until(lambda: replica.jobs)
        draining = asyncio.ensure_future(replica.listener.drain())
        await front.until(lambda: link.draining)
        assert link.room == 0
        assert not draining.done()
        replica.jobs[0].on_reply(Reply(200, b"last"))
        await asyncio.wait_for(draining, 10)
        assert [reply.body for reply in front.replies] == [b"last"]
        assert not front.lost

    run(scenario)


def test_a_replica_whose_worker_restarts_gets_no_requests_meanwhile() -> None:
    async def scenario(front: Front, replica: ManualReplica, link: ReplicaLink) -> None:
        replica.listener.set_ready(False)
        await front.until(lambda: not link.ready)
        assert link.connected
        replica.listener.set_ready(True)
        await front.until(lambda: link.ready)

    run(scenario)


def test_without_the_secret_nothing_is_accepted_and_the_reason_is_known() -> None:
    async def body() -> None:
        replica, front = ManualReplica(), Front()
        endpoint = await replica.open()
        assert endpoint.secret.hex() not in repr(endpoint)
        assert str(endpoint.secret) not in repr(endpoint)
        link = ReplicaLink("r", replace(endpoint, secret=b"another"), OTHER_NODE, 4, front)
        opened: list[int] = []
        closed = asyncio.Event()

        def create() -> Channel:
            return Channel(
                b"another",
                front=True,
                on_open=lambda: opened.append(1),
                on_frame=lambda *frame: opened.append(2),
                on_close=closed.set,
            )

        await channel.connect(endpoint, OTHER_NODE, create)
        await asyncio.wait_for(closed.wait(), 10)
        assert not opened
        await front.until(lambda: link.problem)
        assert link.problem == f"127.0.0.1:{endpoint.port}: the connection is closed at once"
        # Frames that precede the proof are no frames.
        reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
        writer.write(b"\x20" + b"\xff" * 200)
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert not replica.jobs
        link.close()
        replica.listener.close()

    asyncio.run(body())


def test_an_address_that_nothing_listens_at_is_a_problem_with_a_reason() -> None:
    async def body() -> None:
        replica, front = ManualReplica(), Front()
        endpoint = await replica.open()
        replica.listener.close()
        link = ReplicaLink("r", endpoint, NODE, 4, front)  # its Unix socket is gone, too
        await front.until(lambda: link.problem)
        assert link.problem.startswith(f"127.0.0.1:{endpoint.port}: ")
        link.close()

    asyncio.run(body())


def test_where_ray_encrypts_its_connections_these_are_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = certify(tmp_path)
    for name, value in {"RAY_USE_TLS": "1", "RAY_TLS_SERVER_CERT": certificate, "RAY_TLS_SERVER_KEY": key}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("RAY_TLS_CA_CERT", str(certificate))

    async def scenario(front: Front, replica: ManualReplica, link: ReplicaLink) -> None:
        assert link._channel._transport.get_extra_info("ssl_object")  # type: ignore[union-attr]
        link.send([front.job(LARGE)])
        await front.until(lambda: replica.jobs)
        assert bytes(replica.jobs[0].inputs[0].content) == LARGE

    run(scenario)
