"""The replica's end of its connections: requests of fronts are passed to its pool, replies back to the fronts."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torchmar.cluster import channel
from torchmar.cluster.channel import Channel, Endpoint
from torchmar.server.api_error import ApiError
from torchmar.server.workers.jobs import Job, Part, Reply

_SECRET_SIZE = 32  # bytes
_PATH_SIZE = 100  # limit for the path of a Unix socket, which every system allows
_WAIT_SECONDS = 0.05  # interval of checks for unanswered requests while the replica ends


class Listener:
    """The sockets of a replica.

    Args:
        submit: runs a request; raises ApiError if it cannot be run.
        take_events: returns batches and updates of metrics since its previous call; see `channel.Replies`.
        node_id: Ray's id of the node.
    """

    def __init__(
        self, submit: Callable[[Job], None], take_events: Callable[[], Mapping[str, Any]], node_id: str
    ) -> None:
        self.submit, self.take_events = submit, take_events
        self._node_id = node_id
        self._secret = secrets.token_bytes(_SECRET_SIZE)
        self._fronts: set[_Front] = set()
        self._servers: list[asyncio.Server] = []
        self._folder = ""
        self._ready = self._draining = False

    @property
    def demand(self) -> int:
        """The number of requests that wait or run, on all replicas, as the connected fronts have last reported."""
        return sum(front.demand for front in self._fronts)

    async def open(self, host: str, environment: Mapping[str, str]) -> Endpoint:
        """Listen at an address of this node, and at a Unix socket; return both.

        Args:
            host: address of the node.
            environment: environment that has Ray's variables for TLS.

        Raises:
            OSError: an address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        contexts = channel.tls_contexts(environment)
        server = await loop.create_server(self._create, host, 0, ssl=contexts[0] if contexts else None)
        self._servers.append(server)
        self._folder = tempfile.mkdtemp(prefix="torchmar-")  # its mode lets only this user enter
        unix = str(Path(self._folder) / "replica")
        if len(os.fsencode(unix)) > _PATH_SIZE:
            unix = ""
        else:
            self._servers.append(await loop.create_unix_server(self._create, unix))
        port = server.sockets[0].getsockname()[1]
        return Endpoint(host=host, port=port, unix=unix, node_id=self._node_id, secret=self._secret)

    def set_ready(self, ready: bool) -> None:
        """Let fronts send requests, or stop them until the worker is ready again."""
        self._ready = ready
        for front in self._fronts:
            front.send_state(ready)

    async def drain(self) -> None:
        """Stop fronts from sending further requests, and wait until they have closed their connections."""
        self._draining = True
        for front in self._fronts:
            front.send_drain()
        while self._fronts:
            await asyncio.sleep(_WAIT_SECONDS)

    def close(self) -> None:
        """Close all connections."""
        for server in self._servers:
            server.close()
        for front in list(self._fronts):
            front.abort()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def on_open(self, front: _Front) -> None:
        """Accept requests of a front that has proved the secret."""
        self._fronts.add(front)
        front.send_state(self._ready)
        if self._draining:
            front.send_drain()

    def on_close(self, front: _Front) -> None:
        """Remove a front that has closed its connection."""
        self._fronts.discard(front)

    def _create(self) -> Channel:
        return _Front(self, self._secret).channel


class _Front:
    """A connected front, and its requests."""

    def __init__(self, listener: Listener, secret: bytes) -> None:
        self.demand = 0
        self.channel = Channel(
            secret, front=False, on_open=self._on_open, on_frame=self._on_frame, on_close=self._on_close
        )
        self._listener = listener
        self._jobs: dict[int, Job] = {}
        self._replies: list[tuple[int, Reply]] = []
        self._scheduled = False
        self._loop = asyncio.get_running_loop()

    def send_state(self, ready: bool) -> None:
        self.channel.send(channel.STATE, ready)

    def send_drain(self) -> None:
        self.channel.send(channel.DRAIN, None)

    def abort(self) -> None:
        self.channel.abort()

    def _on_open(self) -> None:
        self._listener.on_open(self)

    def _on_frame(self, kind: int, document: Any, bodies: Sequence[bytes]) -> None:
        if kind == channel.REQUESTS:
            self._on_requests(document, bodies)
        elif kind == channel.CANCEL:
            for number in document:
                if job := self._jobs.pop(number, None):
                    job.cancelled = True
        elif kind == channel.PING:
            self.demand = document
            self.channel.send(channel.PONG, None)

    def _on_requests(self, requests: Sequence[channel.Request], bodies: Sequence[bytes]) -> None:
        contents = iter(bodies)
        for number, request_id, headers, waited, seconds, isolated, parts in requests:
            inputs = [Part(name, content_type, next(contents)) for name, content_type, _ in parts]
            deadline = None if seconds is None else time.monotonic() + seconds
            job = Job(request_id, headers, inputs, partial(self._on_reply, number), deadline)
            job.since -= waited  # the time in the queue includes the wait at the front
            job.isolated = isolated
            self._jobs[number] = job
            try:
                self._listener.submit(job)
            except ApiError as error:
                job.reply_error(error)

    def _on_reply(self, number: int, reply: Reply) -> None:
        if not reply.more:
            self._jobs.pop(number, None)
        self._replies.append((number, reply))
        if not self._scheduled:
            # At the end of this iteration of the loop, so that all replies of a batch, and its events, share a frame.
            self._scheduled = True
            self._loop.call_soon(self._send_replies)

    def _send_replies(self) -> None:
        self._scheduled = False
        replies, self._replies = self._replies, []
        document = {
            "replies": [
                (number, reply.status, reply.content_type, reply.headers, len(reply.body), reply.message, reply.more)
                for number, reply in replies
            ],
            **self._listener.take_events(),
        }
        self.channel.send(channel.REPLIES, document, [reply.body for _, reply in replies])

    def _on_close(self) -> None:
        self._listener.on_close(self)
        for job in self._jobs.values():
            job.cancelled = True
        self._jobs.clear()
