"""The front's end of a connection to one replica: it reconnects, and has the requests that are not answered yet."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any, Protocol

from torchmar.cluster import channel
from torchmar.cluster.channel import Channel, Endpoint
from torchmar.server.workers.batch_times import BatchTimes
from torchmar.server.workers.jobs import Job, Reply

_CONNECT_SECONDS = 5.0
_PAUSES = (0.1, 0.2, 0.5, 1.0)  # seconds between attempts; the last value repeats
_PING_SECONDS = 2.0
_SILENCE_SECONDS = 10.0  # after this silence a replica is regarded as lost with its node, not as slow
_LARGE = 1 << 30  # limit of the requests in one frame


class LinkOwner(Protocol):
    """The pool of a link.

    Attributes:
        batch_times: times of the batches of its replicas, if they are measured.
    """

    batch_times: BatchTimes | None

    def on_state(self, link: ReplicaLink) -> None:
        """Record that the replica accepts requests, or no longer does, or cannot be reached (``problem``)."""

    def on_replies(self, link: ReplicaLink, batches: Sequence[Any], updates: Sequence[Any]) -> None:
        """Send further requests if the link has room, and record the events of the batches."""

    def on_lost(self, link: ReplicaLink, unanswered: Sequence[tuple[Job, bool]]) -> None:
        """Repeat or fail requests whose replica has ended; each with whether its client has parts of the reply."""


class ReplicaLink:
    """The connection to a replica.

    Args:
        replica_id: Ray Serve's name of the replica.
        endpoint: addresses at which it listens.
        node_id: Ray's id of the front's node.
        limit: number of requests that it may have at once.
        owner: pool of the link, for callbacks.

    Attributes:
        id: Ray Serve's name of the replica.
        jobs: requests that are sent and not answered, by number.
        connected: whether the connection is open.
        ready: whether it accepts requests.
        draining: whether the replica ends after it has answered its requests.
        batch_started: earliest start of the first unanswered request, by `time.monotonic`.
        problem: reason why no connection has succeeded; empty: one has, or none was tried yet.
    """

    def __init__(self, replica_id: str, endpoint: Endpoint, node_id: str, limit: int, owner: LinkOwner) -> None:
        self.id = replica_id
        self.jobs: dict[int, Job] = {}
        self.connected = self.ready = self.draining = False
        self.problem = ""
        self.batch_started = 0.0
        self._endpoint, self._node_id, self._limit, self._owner = endpoint, node_id, limit, owner
        self._channel: Channel | None = None
        self._numbers = itertools.count()
        self._streaming: set[int] = set()  # requests whose clients have parts of the reply
        self._heard = self._pinged = 0.0  # times by `time.monotonic`; 0: never
        self._closed = False
        self._ended = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._connect())

    @property
    def room(self) -> int:
        """The number of requests that it accepts now."""
        return self._limit - len(self.jobs) if self.ready else 0

    def send(self, jobs: Sequence[Job]) -> None:
        """Send requests; `LinkOwner.on_lost` gets those without an answer when the connection ends."""
        if len(jobs) > 1 and sum(len(part[2]) for job in jobs for part in job.inputs) > _LARGE:
            for job in jobs:
                self.send([job])
            return
        assert self._channel
        now = time.monotonic()
        if not self.jobs:
            self.batch_started = now
        document: list[channel.Request] = []
        bodies: list[Any] = []
        for job in jobs:
            number = next(self._numbers)
            self.jobs[number] = job
            seconds = None if job.deadline is None else job.deadline - now
            parts = [(part[0], part[1], len(part[2])) for part in job.inputs]
            document.append((number, job.request_id, job.headers, now - job.since, seconds, job.isolated, parts))
            bodies += [part[2] for part in job.inputs]
            if job.spans is not None:
                job.spans.begin_batch()
        self._channel.send(channel.REQUESTS, document, bodies)

    def check(self, now: float, demand: int) -> None:
        """Drop requests whose clients have disconnected, and the connection if the replica is silent.

        Args:
            now: current time, by `time.monotonic`.
            demand: number of requests of the front that wait or run, on all replicas.
        """
        if not self._channel or not self.connected:
            return
        if cancelled := [number for number, job in self.jobs.items() if job.cancelled]:
            for number in cancelled:
                self._remove(number)
            self._channel.send(channel.CANCEL, cancelled)
            self._owner.on_replies(self, (), ())
        if now - self._heard > _SILENCE_SECONDS:
            self._channel.abort()
        elif now - self._pinged >= _PING_SECONDS:
            self._pinged = now
            self._channel.send(channel.PING, demand)

    def close(self) -> list[Job]:
        """Close the connection for good; return the requests without an answer."""
        self._closed = True
        self._task.cancel()
        jobs = list(self.jobs.values())
        self.jobs.clear()
        if self._channel:
            self._channel.abort()
        return jobs

    async def _connect(self) -> None:
        """Keep the connection open until the replica ends."""
        attempts = 0
        while not self._closed and not self.draining:
            self._ended.clear()
            heard_before = self._heard
            try:
                await asyncio.wait_for(channel.connect(self._endpoint, self._node_id, self._create), _CONNECT_SECONDS)
                await self._ended.wait()
            except asyncio.TimeoutError:
                self._fail(f"no answer within {_CONNECT_SECONDS:g} s")
            except OSError as error:
                self._fail(error.strerror or str(error))
            attempts = 0 if self._heard > heard_before else attempts + 1
            await asyncio.sleep(_PAUSES[min(attempts, len(_PAUSES) - 1)])

    def _create(self) -> Channel:
        self._channel = Channel(
            self._endpoint.secret,
            front=True,
            on_open=self._on_open,
            on_frame=self._on_frame,
            on_close=self._on_close,
        )
        return self._channel

    def _on_open(self) -> None:
        self.connected, self.problem = True, ""
        self._heard, self._pinged = time.monotonic(), 0.0

    def _on_frame(self, kind: int, document: Any, bodies: Sequence[bytes]) -> None:
        self._heard = time.monotonic()
        if kind == channel.REPLIES:
            self._on_replies(document, bodies)
        elif kind == channel.STATE:
            self.ready = document and not self.draining
            self._owner.on_state(self)
        elif kind == channel.DRAIN:
            self.ready, self.draining = False, True
            self._owner.on_state(self)
            self._close_if_drained()

    def _on_replies(self, document: channel.Replies, bodies: Sequence[bytes]) -> None:
        replies: list[tuple[Job, Reply]] = []
        for (number, status, content_type, headers, _, message, more), body in zip(
            document["replies"], bodies, strict=True
        ):
            if (job := self.jobs.get(number)) is not None:
                replies.append((job, Reply(status, body, content_type, headers, more, message)))
                if more:
                    self._streaming.add(number)
                else:
                    self._remove(number)
        self._measure(replies)
        # First send further requests, so that the replica does not wait while these replies are handled.
        self._owner.on_replies(self, document["batches"], document["metrics"])
        for job, reply in replies:
            if job.spans is not None and not reply.more:
                error = (reply.message or f"status {reply.status}") if reply.status >= 500 else None
                job.spans.end_batch({"torchmar.worker.id": self.id}, (), (), error)
            if not job.cancelled:
                job.on_reply(reply)
        self._close_if_drained()

    def _measure(self, replies: Sequence[tuple[Job, Reply]]) -> None:
        """Record the time of a batch: since the replica has received it, or has answered the previous batch."""
        # A reply with an error message was rejected, or ended its worker: its time says nothing about a batch.
        run = [job for job, reply in replies if not reply.more and not reply.message]
        if not run:
            return
        now = time.monotonic()
        if (times := self._owner.batch_times) is not None:
            times.record(run[0].batch_kind, len(run), now - self.batch_started)
        self.batch_started = now

    def _remove(self, number: int) -> None:
        del self.jobs[number]
        self._streaming.discard(number)

    def _close_if_drained(self) -> None:
        if self.draining and not self.jobs and self._channel:
            self._channel.abort()

    def _on_close(self) -> None:
        if not self.connected:
            self._fail((self._channel and self._channel.problem) or "the connection is closed at once")
        was_open, self.connected, self.ready = self.connected, False, False
        unanswered = [(job, number in self._streaming) for number, job in self.jobs.items()]
        self.jobs.clear()
        self._streaming.clear()
        self._ended.set()
        if was_open and not self._closed:
            self._owner.on_lost(self, unanswered)

    def _fail(self, reason: str) -> None:
        # The directory may still list a replica that was connected and has ended.
        if not self._heard and not self._closed:
            self.problem = f"{self._endpoint}: {reason}"
            self._owner.on_state(self)
