"""The load itself: calls over connections, in an open or a closed loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from torchmar.load.answers import AnswerCheck, Expected
from torchmar.load.calls import Call, Connection, Owner
from torchmar.load.event_loop import EventLoop, clock
from torchmar.load.recorder import Recorder

_TIMEOUT_CHECK_S = 0.05
_MAX_BURST = 64  # sends of a late client before it reads answers again
_IDLE_S = 0.0005  # a wait that is long enough to compare an answer in
_MAX_EXAMPLE = 200  # characters

#: Opens a connection whose events the owner gets.
Connect = Callable[[Owner], Connection]
#: Called from time to time with the time of the clock; True ends the load early.
Watch = Callable[[float], bool]


class Generator:
    """Calls to a server over as many connections as they need.

    Args:
        loop: of the connections.
        connect: opens a connection.
        expected: of each request; requests are sent in turn.
        recorder: gets the account.
        timeout_s: seconds after which an answer is not waited for any more.
        max_connections: calls beyond them wait, which their latency includes.
    """

    def __init__(
        self,
        loop: EventLoop,
        connect: Connect,
        expected: list[Expected],
        recorder: Recorder,
        timeout_s: float,
        max_connections: int,
    ) -> None:
        self._loop, self._connect, self._expected, self._recorder = loop, connect, expected, recorder
        self._timeout_s, self._max_connections = timeout_s, max_connections
        self.check = AnswerCheck(expected, recorder.on_wrong)
        self.opened = 0  # connections so far
        self._open: set[Connection] = set()
        self._free: list[Connection] = []
        self._queue: deque[Call] = deque()  # calls without a connection
        self._order: deque[Call] = deque()  # all calls, the oldest first
        self._next = 0
        self._in_flight = 0
        self._next_check = 0.0
        self._on_end: Callable[[], None] | None = None  # a closed loop's next call

    # The loops.

    def run_open(self, start: float, times: Iterator[float], end: float, watch: Watch) -> None:
        """Send requests at given times until ``end``, and wait for their answers.

        Args:
            start: the time of the clock that ``times`` are relative to.
            times: in ascending order.
            end: the time of the clock when the last request may be due.
            watch: called about every 50 ms.
        """
        due = start + next(times, float("inf"))
        on_due = self._recorder.on_due
        while True:
            now = clock()
            burst = 0
            while due <= now and due < end and burst < _MAX_BURST:
                on_due(due, now)
                self._start(due, now)
                due = start + next(times, float("inf"))
                now = clock()
                burst += 1
            if due >= end:
                break
            self._wait(due)
            if self._loop.now >= self._next_check and self._housekeep(watch):
                return
        self._drain(watch)

    def run_closed(self, connections: int, end: float, watch: Watch) -> None:
        """Send a request on each of so many connections as soon as it has the answer to the last, until ``end``."""

        def again() -> None:
            now = clock()
            if now < end:
                self._recorder.on_due(self._loop.now, now)
                self._start(now, now)

        self._on_end = again
        for _ in range(connections):
            self._loop.now = clock()
            again()
        while clock() < end:
            self._loop.poll(min(end, clock() + _TIMEOUT_CHECK_S))
            if self.check.waits:
                self.check.work(clock() + _IDLE_S)
            if self._loop.now >= self._next_check and self._housekeep(watch):
                return
        self._on_end = None
        self._drain(watch)

    def close(self) -> None:
        """Close all connections; calls without an answer are not counted."""
        for connection in list(self._open):
            connection.close()
        self._open.clear()
        self._free.clear()

    # Events of connections.

    def answered(self, call: Call, status: int, body: bytes) -> None:
        """A call has an answer."""
        if call.done:
            return
        call.done = True
        self._in_flight -= 1
        now = self._loop.now
        expected = self._expected[call.index]
        if status == expected.status:
            tag = self._recorder.on_answer(call.due, call.sent, now)
            self.check.add(call.index, body, tag)
        else:
            text = body[:_MAX_EXAMPLE].decode("utf-8", "replace").strip()
            self._recorder.on_failure(call.due, now, f"status {status}", f"{expected.name}: {text}")

    def failed(self, call: Call, kind: str, example: str, statuses: Sequence[int] = ()) -> None:
        """A call has failed, unless its request is to get one of ``statuses``."""
        if not call.done:
            call.done = True
            self._in_flight -= 1
            expected = self._expected[call.index]
            if expected.status in statuses:
                self._recorder.on_answer(call.due, call.sent, self._loop.now)
            else:
                self._recorder.on_failure(call.due, self._loop.now, kind, f"{expected.name}: {example}")

    def free(self, connection: Connection) -> None:
        """A connection carries fewer calls than before."""
        if connection.capacity == 1 or connection not in self._free:
            self._free.append(connection)
        self._dispatch()

    def lost(self, connection: Connection, reason: str) -> None:
        """A connection has been closed."""
        self._open.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        self._dispatch()

    # Calls.

    def _start(self, due: float, now: float) -> None:
        index = self._next
        self._next = index + 1 if index + 1 < len(self._expected) else 0
        call = Call(index, due)
        self._in_flight += 1
        self._order.append(call)
        if self._queue or not self._send(call, now):
            self._queue.append(call)

    def _send(self, call: Call, now: float) -> bool:
        """Send a call; return whether there was a connection for it."""
        if self._free:
            connection = self._free[-1]
            if connection.in_flight + 1 >= connection.capacity:
                self._free.pop()
        elif len(self._open) < self._max_connections:
            connection = self._connect(self)
            self.opened += 1
            self._open.add(connection)
            if connection.capacity > 1:
                self._free.append(connection)
        else:
            return False
        call.connection, call.sent = connection, now
        connection.send(call)
        return True

    def _dispatch(self) -> None:
        """Send waiting calls; in a closed loop, begin the next one."""
        while self._queue:
            call = self._queue[0]
            if not call.done and not self._send(call, clock()):
                return
            self._queue.popleft()
        if self._on_end is not None:
            self._on_end()

    # Time.

    def _wait(self, due: float) -> None:
        until = min(due, self._next_check) if self._next_check > self._loop.now else due
        if self.check.waits and due - clock() > _IDLE_S:
            self._loop.poll(0.0)
            self.check.work(min(due - _IDLE_S / 2, clock() + _IDLE_S))
            return
        self._loop.poll(until)

    def _housekeep(self, watch: Watch) -> bool:
        """End calls that have waited too long; return whether the load is to end."""
        now = self._loop.now
        self._next_check = now + _TIMEOUT_CHECK_S
        order = self._order
        while order and (order[0].done or now - max(order[0].due, order[0].sent) > self._timeout_s):
            call = order.popleft()
            if call.done:
                continue
            self.failed(call, "timeout", f"no answer within {self._timeout_s:g} s")
            if call.connection is not None:
                call.connection.cancel(call)
        return watch(now)

    def _drain(self, watch: Watch) -> None:
        """Wait for the answers to all calls; the time-out of each ends that."""
        while self._in_flight:
            self._loop.poll(clock() + _TIMEOUT_CHECK_S)
            if self._loop.now >= self._next_check and self._housekeep(watch):
                return
