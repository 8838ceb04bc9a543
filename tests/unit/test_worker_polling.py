"""A core that other programs take is not waited on actively for a while."""

from __future__ import annotations

import time

from torchmar.worker.process.polling import LONGEST_PAUSE, SHORTEST_PAUSE, TAKEN, PollGate, yield_core


def test_waiting_actively_is_tried_until_the_core_is_taken() -> None:
    gate = PollGate()
    for step in range(100):
        now = step * 0.001
        assert gate.enter(now)
        gate.record(now, TAKEN / 2)


def test_a_taken_core_ends_active_waiting_for_a_while() -> None:
    gate = PollGate()
    gate.record(1.0, TAKEN)
    assert not gate.enter(1.0 + 0.9 * SHORTEST_PAUSE)
    assert gate.enter(1.0 + SHORTEST_PAUSE)


def test_tries_become_fewer_while_the_core_is_taken_each_time() -> None:
    gate, now, tries = PollGate(), 0.0, 0
    while now < 60.0:
        if gate.enter(now):
            gate.record(now, 0.004)
            tries += 1
        now += 0.001
    assert tries <= 60 / LONGEST_PAUSE + 5


def test_after_a_while_without_others_a_taken_core_counts_as_the_first() -> None:
    gate = PollGate()
    for now in (0.0, 0.2, 0.5, 1.0, 2.0):
        gate.record(now, 0.004)
    gate.record(100.0, 0.004)
    assert gate.enter(100.0 + SHORTEST_PAUSE)


def test_time_without_the_core_while_waiting_closes_the_gate() -> None:
    gate, now = PollGate(), time.monotonic()
    assert gate.enter(now)
    time.sleep(2 * TAKEN)  # as if another program computed
    gate.leave(time.monotonic())
    assert not gate.enter(now)


def test_yielding_a_core_returns_the_time_of_return() -> None:
    before = time.monotonic()
    back, _ = yield_core(before)
    assert before <= back <= time.monotonic()
