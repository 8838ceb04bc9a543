"""The load itself: calls over connections, in an open or a closed loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from torchmar.load.answers import AnswerCheck, Expected
from torchmar.load.calls import Call, Connection, Owner
from torchmar.load.event_loop import EventLoop, clock
from torchmar.load.recorder import Recorder

_TIMEOUT_CHECK_S = 0.05
_MAX_BURST = 64  # number of sends after which a late client reads answers again
_IDLE_S = 0.0005  # a wait in which there is time to compare an answer
_MAX_EXAMPLE = 200  # characters

#: Opens a connection whose events are passed to the owner.
Connect = Callable[[Owner], Connection]
#: Called periodically with the time of the clock; True ends the load early.
Watch = Callable[[float], bool]


class Generator:
    """Calls to a server over as many connections as they need.

    Args:
        loop: event loop of the connections.
        connect: opens a connection.
        expected: expected answer to each request; requests are sent in turn.
        recorder: records the results.
        timeout_s: seconds after which a call without an answer fails.
        max_connections: limit of connections; calls without a connection wait, and their latency includes the wait.
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
        self.opened = 0  # number of connections so far
        self._open: set[Connection] = set()
        self._free: list[Connection] = []
        self._queue: deque[Call] = deque()  # calls without a connection
        self._order: deque[Call] = deque()  # all calls, the oldest first
        self._next = 0
        self._in_flight = 0
        self._next_check = 0.0
        self._on_end: Callable[[], None] | None = None  # starts the next call of a closed loop

    # The loops.

    def run_open(self, start: float, times: Iterator[float], end: float, watch: Watch) -> None:
        """Send requests at the times of a schedule until ``end``, and wait for their answers.

        Args:
            start: time of the clock to which ``times`` are relative.
            times: times of the requests, in ascending order.
            end: time of the clock until which requests are due.
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
        """Send requests on ``connections`` connections until ``end``, each when the previous one has its answer."""

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
        """Implement `Owner`: a call has an answer."""
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
        """Implement `Owner`: a call has failed, unless one of ``statuses`` is expected."""
        if not call.done:
            call.done = True
            self._in_flight -= 1
            expected = self._expected[call.index]
            if expected.status in statuses:
                self._recorder.on_answer(call.due, call.sent, self._loop.now)
            else:
                self._recorder.on_failure(call.due, self._loop.now, kind, f"{expected.name}: {example}")

    def free(self, connection: Connection) -> None:
        """Implement `Owner`: a connection carries fewer calls than before."""
        if connection.capacity == 1 or connection not in self._free:
            self._free.append(connection)
        self._dispatch()

    def lost(self, connection: Connection, reason: str) -> None:
        """Implement `Owner`: a connection has been closed."""
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
        """Send a call; return whether a connection was available."""
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
        """Send waiting calls; in a closed loop, start the next call."""
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
        """End calls that have waited for too long; return whether the load should end."""
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
        """Wait for the answers to all calls; each call's timeout limits this."""
        while self._in_flight:
            self._loop.poll(clock() + _TIMEOUT_CHECK_S)
            if self._loop.now >= self._next_check and self._housekeep(watch):
                return
