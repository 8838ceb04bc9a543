"""The choice of a replica for the next requests: a replica with the fewest requests."""

from __future__ import annotations

from collections.abc import Sized
from typing import Generic, Protocol, TypeVar


class Target(Protocol):
    """A replica, see `torchmar.cluster.link.ReplicaLink`."""

    ready: bool

    @property
    def jobs(self) -> Sized:
        """Its requests."""

    @property
    def room(self) -> int:
        """The number of further requests that it accepts."""


T = TypeVar("T", bound=Target)


class Balancer(Generic[T]):
    """Replicas, ordered by the number of their requests; all methods take constant time.

    Attributes:
        total: number of requests of all replicas.
        ready: number of replicas that accept requests.
    """

    def __init__(self) -> None:
        self.total = self.ready = 0
        self._known: dict[T, tuple[int, bool, bool]] = {}  # number of requests, whether it is ready and has room
        self._by_count: dict[int, dict[T, None]] = {}  # the replicas with room, by the number of their requests

    def place(self, target: T) -> None:
        """Add a replica, or record that its requests or its state have changed."""
        self.remove(target)
        count, ready, has_room = len(target.jobs), target.ready, target.room > 0
        self._known[target] = count, ready, has_room
        self.total += count
        self.ready += ready
        if has_room:
            self._by_count.setdefault(count, {})[target] = None

    def remove(self, target: T) -> None:
        """Remove a replica, if it is known."""
        if (entry := self._known.pop(target, None)) is None:
            return
        count, ready, has_room = entry
        self.total -= count
        self.ready -= ready
        if has_room:
            targets = self._by_count[count]
            del targets[target]
            if not targets:
                del self._by_count[count]

    def choose(self) -> T | None:
        """Return a replica with the fewest requests; None: no replica has room."""
        if not self._by_count:
            return None
        return next(reversed(self._by_count[min(self._by_count)]))
