"""The directory of a cluster: an actor that replicas announce themselves to, and that all fronts share.

It lives as long as any front does, and is started again on another node when its node fails. It keeps no state that its
users cannot send again: replicas announce themselves each second, and so do fronts with their contents. The front that
led before leads again; if that front has failed too, another front that has served the same models leads.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torchmar
from torchmar.cluster.calls import Call, CallQueue, Response
from torchmar.cluster.channel import Endpoint
from torchmar.cluster.log_lines import LogLine
from torchmar.cluster.node_contents import PackedContent
from torchmar.server.workers.pool_options import State, WorkerInfo
from torchmar.worker.process.messages import ModelDescription

ANNOUNCE_SECONDS = 1.0  # interval of the announcements of a replica, or of a front
_LOST_SECONDS = 5.0  # a replica or front without an announcement for this time is no longer listed
_LINES = 20_000  # log lines that are kept for fronts that have not read them


@dataclass(frozen=True, kw_only=True)
class ReplicaState:
    """The state that a replica announces.

    Attributes:
        id: Ray Serve's name of the replica.
        node: address of its node, with Ray's id of the node.
        state: state of its worker.
        pid: process id of its worker; 0 before the worker runs.
        memory: memory of its worker, in bytes.
        device: ``cpu``, or the GPUs of its node that are reserved for it: ``gpu 0``.
        requests: number of requests that its worker has answered.
        cpu_seconds: CPU time of its own process and of its worker.
        started: time of its start, in seconds since 1970.
        load_seconds: seconds that its model took to load; 0 before it is loaded.
        failure: traceback of its worker; empty once the model is loaded.
        description: the handler's description of its tensors.
        stages: workers of the other stages than the model, by stage.
        endpoint: addresses at which it listens; None before its model is loaded.
    """

    id: str
    node: str
    state: State
    pid: int = 0
    memory: int = 0
    device: str = "cpu"
    requests: int = 0
    cpu_seconds: float = 0.0
    started: float = 0.0
    load_seconds: float = 0.0
    failure: str = ""
    description: ModelDescription = field(default_factory=lambda: ModelDescription())
    stages: Mapping[str, Sequence[WorkerInfo]] = field(default_factory=dict)
    endpoint: Endpoint | None = None


@dataclass(frozen=True, kw_only=True)
class SharedVersion:
    """A version that all fronts serve.

    Attributes:
        key: key of its pool.
        content: packed content of its archive.
        size: bytes of the archive's file; None: the archive is a folder.
        modified: time of the file's last change, in seconds since 1970; None: unknown.
    """

    key: str
    content: PackedContent
    size: int | None
    modified: float | None


@dataclass(frozen=True, kw_only=True)
class SharedState:
    """The models and routes that all fronts serve.

    Attributes:
        models: models as in a snapshot (`torchmar.server.models.snapshots.document`).
        versions: versions, by model name and version.
        routes: routes, as the text of ``torchmar_routes``.
    """

    models: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    versions: Mapping[tuple[str, str], SharedVersion] = field(default_factory=dict)
    routes: str = "{}"


class Standing(NamedTuple):
    """The response to a front that announces itself.

    Attributes:
        leader: name of the front that changes the shared state; the others follow it. Empty: not known yet.
        revision: revision of the shared state; 0: there is none yet.
        fronts: number of fronts.
        directory: id of the directory; a directory that was started again has another id, and an empty state.
    """

    leader: str
    revision: int
    fronts: int
    directory: str


class Directory:
    """The replicas of all pools, by pool key and replica id; the fronts, and the state that they share.

    Args:
        restarted: whether Ray has started the actor again, so that its state is lost; None: ask Ray.
    """

    def __init__(self, restarted: bool | None = None) -> None:
        self._replicas: dict[str, dict[str, tuple[float, ReplicaState]]] = {}
        self._lines: deque[tuple[str, ReplicaState, LogLine]] = deque(maxlen=_LINES)
        self._count = 0  # number of all log lines so far
        self._sources: dict[str, dict[str, tuple[Any, str]]] = {}  # readers and paths of contents, by digest and front
        self._fronts: dict[str, tuple[float, int]] = {}  # time of the last announcement, and the served revision
        self._leader = ""
        self._id, self._started = secrets.token_hex(4), time.monotonic()
        self._restarted = _was_restarted() if restarted is None else restarted
        self._state, self._revision = SharedState(), 0
        self._calls = CallQueue()

    # Replicas.

    async def announce(self, pool: str, replica: ReplicaState, lines: Sequence[LogLine] = ()) -> None:
        """Record the state of a replica, and its log lines since the previous announcement."""
        self._replicas.setdefault(pool, {})[replica.id] = time.monotonic(), replica
        self._lines += ((pool, replica, line) for line in lines)
        self._count += len(lines)

    async def withdraw(self, pool: str, replica_id: str) -> None:
        """Remove a replica that is about to end."""
        self._replicas.get(pool, {}).pop(replica_id, None)

    async def replicas(self) -> dict[str, list[ReplicaState]]:
        """Return the replicas with a recent announcement, by pool."""
        now = time.monotonic()
        for pool, replicas in list(self._replicas.items()):
            recent = {key: entry for key, entry in replicas.items() if now - entry[0] < _LOST_SECONDS}
            if recent:
                self._replicas[pool] = recent
            else:
                del self._replicas[pool]
        return {pool: [state for _, state in replicas.values()] for pool, replicas in self._replicas.items()}

    async def lines(self, after: int) -> tuple[int, list[tuple[str, ReplicaState, LogLine]]]:
        """Return the number of lines that replicas have logged, and the latest of those after the first ``after``."""
        new = min(self._count - after, len(self._lines))
        return self._count, list(self._lines)[len(self._lines) - new :] if new > 0 else []

    # Contents.

    async def add_source(self, digest: str, front: str, reader: Any, path: str) -> None:
        """Record that a front has a packed content; ``reader`` is the front's actor that reads the file."""
        self._sources.setdefault(digest, {})[front] = reader, path

    async def remove_source(self, digest: str, front: str) -> None:
        """Remove a packed content of a front."""
        self._sources.get(digest, {}).pop(front, None)

    async def sources(self, digest: str) -> list[tuple[Any, str]]:
        """Return the actors that read a packed content, and its paths on their nodes."""
        return list(self._sources.get(digest, {}).values())

    # Fronts.

    async def release(self) -> tuple[str, int]:
        """Return the release of torchmar of this process, and the number of fronts: the first call of a new front."""
        self._forget_fronts()
        return torchmar.__version__, len(self._fronts)

    async def join(self, front: str, revision: int = -1, *, leads: bool = False) -> Standing:
        """Record that a front runs; it leads if no other front does, and none serves a newer revision.

        Args:
            front: name of the front.
            revision: revision that the front serves, which an earlier directory may have given; -1: the front has just
                started.
            leads: whether the front has led until now.
        """
        now = time.monotonic()
        self._fronts[front] = now, revision
        self._forget_fronts()
        has_leader = self._leader in self._fronts
        if leads and (not has_leader or revision > self._revision):  # an earlier directory has chosen it
            self._leader = front
        elif not has_leader:
            # After a restart of the directory, the former leader gets time to announce itself: a front that has just
            # started and leads deletes the applications that it does not serve.
            waits = (self._restarted or revision >= 0) and now - self._started < _LOST_SECONDS
            newest = max(served_revision for _, served_revision in self._fronts.values())
            self._leader = "" if waits or revision < newest else front
        return Standing(self._leader, self._revision, len(self._fronts), self._id)

    async def leave(self, front: str) -> int:
        """Remove a front; return the number of the remaining fronts."""
        self._fronts.pop(front, None)
        for sources in self._sources.values():
            sources.pop(front, None)
        if self._leader == front:
            self._leader = ""
        self._forget_fronts()
        return len(self._fronts)

    def _forget_fronts(self) -> None:
        now = time.monotonic()
        self._fronts = {front: entry for front, entry in self._fronts.items() if now - entry[0] < _LOST_SECONDS}
        self._calls.end_calls(self._fronts)

    async def publish(self, front: str, state: SharedState, revision: int = 0) -> int:
        """Replace the shared state; return its revision, or 0 if the front does not lead.

        Args:
            front: name of the leading front.
            state: the new shared state.
            revision: revision that the front has served, which an earlier directory may have given.
        """
        if front != self._leader:
            return 0
        self._state, self._revision = state, max(self._revision, revision) + 1
        return self._revision

    async def state(self) -> tuple[int, SharedState]:
        """Return the shared state and its revision."""
        return self._revision, self._state

    # Calls of the management API; see `CallQueue`.

    async def call(self, call: Call, seconds: float) -> Response | None:
        """Return the leading front's response to a call."""
        return await self._calls.send(call, seconds)

    async def next_call(self, front: str) -> Call | None:
        """Return a call for the leading front, which has to `take` it; None: none has arrived within some seconds."""
        if front != self._leader:
            await asyncio.sleep(ANNOUNCE_SECONDS)
            return None
        return await self._calls.next(front, lambda: front == self._leader)

    async def take(self, front: str, number: int) -> bool:
        """Return whether a front may run a call that was offered to it."""
        return self._calls.take(front, number)

    async def respond(self, number: int, response: Response) -> None:
        """Pass a response on to the sender of a call."""
        self._calls.respond(number, response)


def _was_restarted() -> bool:
    """Return whether Ray has started this actor again; False outside of an actor."""
    try:
        import ray
    except ImportError:
        return False
    return ray.is_initialized() and bool(ray.get_runtime_context().was_current_actor_reconstructed)
