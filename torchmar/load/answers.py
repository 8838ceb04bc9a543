"""Compare the answers under load with the expected ones, without delaying the load.

An answer with the same bytes as an earlier correct answer is correct. Any other answer is compared later, when no
request is due, because parsing JSON and comparing numbers takes longer than sending a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torchmar.load.event_loop import clock
from torchmar.load.recorder import Tag

_KNOWN = 16  # number of correct answers kept for each request; the last digits of some models vary with the batch
_MAX_WAITING_BYTES = 1 << 26

#: Returns the difference of an answer (status, body) from the expected one; empty: there is none. None: all are right.
Comparison = Callable[[int, bytes], str]


@dataclass(frozen=True)
class Expected:
    """The expected answer to one request.

    Attributes:
        name: name of the request in messages.
        status: expected HTTP status.
        difference: compares an answer with this status; None: only the status is known.
    """

    name: str
    status: int = 200
    difference: Comparison | None = None


class AnswerCheck:
    """The check of all answers of a measurement.

    Args:
        expected: expected answer to each request.
        on_wrong: called with the tag of a wrong answer.

    Attributes:
        example: the first wrong answer.
    """

    def __init__(self, expected: Sequence[Expected], on_wrong: Callable[[Tag], None] = lambda tag: None) -> None:
        self._expected = expected
        self._on_wrong = on_wrong
        self._right: list[list[bytes]] = [[] for _ in expected]
        self._waiting: deque[tuple[int, bytes, Tag]] = deque()
        self._waiting_bytes = 0
        self.example = ""

    def add(self, index: int, body: bytes, tag: Tag) -> None:
        """Add an answer that has the expected status.

        Args:
            index: index of its request.
            body: its body.
            tag: value for ``on_wrong``.
        """
        if self._expected[index].difference is None or body in self._right[index]:
            return
        self._waiting.append((index, body, tag))
        self._waiting_bytes += len(body)
        if self._waiting_bytes > _MAX_WAITING_BYTES:
            self._compare()

    def work(self, until: float) -> None:
        """Compare waiting answers until a time of the clock, or until none is left."""
        while self._waiting and clock() < until:
            self._compare()

    def finish(self) -> None:
        """Compare all answers that are left."""
        while self._waiting:
            self._compare()

    @property
    def waits(self) -> bool:
        """Whether answers are waiting to be compared."""
        return bool(self._waiting)

    def _compare(self) -> None:
        index, body, tag = self._waiting.popleft()
        self._waiting_bytes -= len(body)
        expected, right = self._expected[index], self._right[index]
        if expected.difference is None or body in right:
            return
        if difference := expected.difference(expected.status, body):
            self.example = self.example or f"{expected.name}: {difference}"
            self._on_wrong(tag)
        elif len(right) < _KNOWN:
            right.append(body)
