"""The latest events of a server: models registered and scaled, defaults switched, workers started and died."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

Kind = Literal[
    "server_started",
    "registered",
    "unregistered",
    "scaled",
    "default_switched",
    "default_switched_back",
    "worker_started",
    "worker_died",
    "load_failed",
]
KINDS = get_args(Kind)

_CAPACITY = 1000
_LONGEST = 500  # characters of a text, which may be an error message from a model


class Event(NamedTuple):
    """An event.

    Attributes:
        number: number of the event; rises by one with each event of the server.
        time: time in seconds since 1970.
        kind: kind of the event.
        text: a sentence without its subject, for people.
        model: name of the model; empty if the event concerns the whole server.
        version: version of the model; empty if the event concerns the whole server.
        worker: id of the worker; empty if the event concerns no worker.
    """

    number: int
    time: float
    kind: Kind
    text: str
    model: str = ""
    version: str = ""
    worker: str = ""


class Events:
    """The latest thousand events; older ones are dropped. All methods are called in the server's loop."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=_CAPACITY)
        self._numbers = itertools.count(1)

    def add(self, kind: Kind, text: str, model: str = "", version: str = "", worker: str = "") -> None:
        """Record an event with the current time; see `Event`."""
        self._events.append(Event(next(self._numbers), time.time(), kind, text[:_LONGEST], model, version, worker))

    def since(self, number: int = 0) -> Iterator[Event]:
        """Yield the events after ``number``, in their order."""
        newer: list[Event] = []
        for event in reversed(self._events):
            if event.number <= number:
                break
            newer.append(event)
        return reversed(newer)

    @property
    def last(self) -> int:
        """The number of the last event; 0: there is none."""
        return self._events[-1].number if self._events else 0
