"""Compare the answers under load with the expected ones, without delaying the load.

An answer whose bytes are those of a right answer before it is right. Any other is compared later, when no request is
due: to parse JSON and to compare its numbers takes longer than to send a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torchmar.load.event_loop import clock
from torchmar.load.recorder import Tag

_KNOWN = 16  # different right answers to one request that are kept, for models whose last digits vary with the batch
_MAX_WAITING_BYTES = 1 << 26

#: Returns how an answer (status, body) differs from the expected one; empty if it does not. None: nothing is expected.
Comparison = Callable[[int, bytes], str]


@dataclass(frozen=True)
class Expected:
    """The expected answer to one request.

    Attributes:
        name: of the request, for messages.
        status: of HTTP.
        difference: compares an answer of this status; None if only its status is known.
    """

    name: str
    status: int = 200
    difference: Comparison | None = None


class AnswerCheck:
    """The comparison of all answers of a measurement.

    Args:
        expected: of each request.
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
        """Take an answer that has the expected status.

        Args:
            index: of its request.
            body: its content.
            tag: for ``on_wrong``.
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
        """Whether answers wait to be compared."""
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
