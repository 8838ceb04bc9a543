"""The directory of replicas: an actor on the front's node to which they announce themselves.

It also has the packed contents of archives for nodes that cannot read the front's disk. It ends with the front.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from torchmar.cluster import node_archives
from torchmar.cluster.channel import Endpoint
from torchmar.server.workers.pool_options import State
from torchmar.worker.process.messages import ModelDescription

ANNOUNCE_SECONDS = 1.0  # between two announcements of a replica
_LOST_SECONDS = 5.0  # after which a replica that does not announce itself is no longer listed


@dataclass(frozen=True, kw_only=True)
class ReplicaState:
    """What a replica announces.

    Attributes:
        id: Ray Serve's name of it.
        node: the address of its node, and Ray's id of it.
        state: of its worker.
        pid: the process of its worker; 0 before it runs.
        memory: of its worker, in bytes.
        gpu: whether it has a GPU.
        started: in seconds since 1970.
        load_seconds: that its model took to load; 0 before.
        failure: the traceback of its worker; empty since it has loaded.
        description: of the handler's tensors.
        endpoint: where it listens; None before its model is loaded.
    """

    id: str
    node: str
    state: State
    pid: int = 0
    memory: int = 0
    gpu: bool = False
    started: float = 0.0
    load_seconds: float = 0.0
    failure: str = ""
    description: ModelDescription = field(default_factory=lambda: ModelDescription())
    endpoint: Endpoint | None = None


class Directory:
    """The replicas of a front's pools, by the key of the pool and the id of the replica.

    Args:
        contents: packed contents by their digests, which `add_content` extends.
    """

    def __init__(self) -> None:
        self._replicas: dict[str, dict[str, tuple[float, ReplicaState]]] = {}
        self._contents: dict[str, Path] = {}

    def announce(self, pool: str, replica: ReplicaState) -> None:
        """Record the state of a replica."""
        self._replicas.setdefault(pool, {})[replica.id] = time.monotonic(), replica

    def withdraw(self, pool: str, replica_id: str) -> None:
        """Remove a replica that ends."""
        self._replicas.get(pool, {}).pop(replica_id, None)

    def replicas(self) -> dict[str, list[ReplicaState]]:
        """Return the replicas that have announced themselves lately, by pool."""
        now = time.monotonic()
        for pool, replicas in list(self._replicas.items()):
            kept = {key: entry for key, entry in list(replicas.items()) if now - entry[0] < _LOST_SECONDS}
            if kept:
                self._replicas[pool] = kept
            else:
                del self._replicas[pool]
        return {pool: [state for _, state in replicas.values()] for pool, replicas in self._replicas.items()}

    def add_content(self, digest: str, path: str) -> None:
        """Make a packed content available to nodes."""
        self._contents[digest] = Path(path)

    def remove_content(self, digest: str) -> None:
        """Remove a packed content."""
        self._contents.pop(digest, None)

    def read(self, digest: str, offset: int) -> bytes:
        """Return a chunk of a packed content."""
        return node_archives.read_at(self._contents[digest], offset)
