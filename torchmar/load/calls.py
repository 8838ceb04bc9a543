"""Calls and the connections that carry them: the interface between the load and its protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Call:
    """One request on its way.

    Attributes:
        index: index of its request.
        due: time at which it should be sent.
        done: whether it has an answer or has failed.
        connection: connection that carries it; None while it waits for one.
    """

    __slots__ = ("connection", "done", "due", "index", "sent")

    def __init__(self, index: int, due: float) -> None:
        self.index, self.due = index, due
        self.sent = 0.0
        self.done = False
        self.connection: Connection | None = None


class Connection(Protocol):
    """One connection to a server.

    Attributes:
        in_flight: the number of calls without an answer.
        capacity: the number of calls that it carries at a time.
    """

    in_flight: int
    capacity: int

    def send(self, call: Call) -> None:
        """Send the request of a call."""

    def cancel(self, call: Call) -> None:
        """Stop waiting for the answer to a call."""

    def close(self) -> None:
        """Close the connection."""


class Owner(Protocol):
    """The owner of connections, which gets their events."""

    def answered(self, call: Call, status: int, body: bytes) -> None:
        """Record that a call has an answer; ``status`` is that of HTTP, 200 for a successful call over gRPC."""

    def failed(self, call: Call, kind: str, example: str, statuses: Sequence[int] = ()) -> None:
        """Record that a call has failed without an answer that can be compared.

        ``statuses`` are the HTTP statuses that correspond to the server's error; if one of them is expected, the call
        is right.
        """

    def free(self, connection: Connection) -> None:
        """Record that a connection carries fewer calls than before; called after `answered`."""

    def lost(self, connection: Connection, reason: str) -> None:
        """Record that a connection has been closed; its calls have failed before."""
