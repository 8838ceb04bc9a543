"""Thread counts follow from the times of batches; machines are formulas here, so that no time is measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from torchmar.worker.process.adaptive_threads import LONGEST_PAUSE, AdaptiveThreads, ThreadChoice

Machine = Callable[[int], tuple[float, float]]  # threads of a batch to its seconds, and its CPU seconds


def parallel(work: float, *, serial: float = 0.0) -> Machine:
    """Return a machine on which the threads share the work and have a core each."""
    return lambda threads: (serial + work / threads, serial + work)


def contended(work: float, free: int) -> Machine:
    """Return a machine that has fewer free cores than threads: the slowest thread has half a core."""
    return lambda threads: (work / threads * (1 if threads <= free else 2), work)


def fine_grained(work: float) -> Machine:
    """Return a machine whose threads wait for each other longer than they work."""
    return lambda threads: (work * (1 if threads == 1 else 1.5), work * threads)


def run(choice: ThreadChoice, machine: Machine, batches: int, size: int = 8) -> list[int]:
    """Record batches on a machine; return the thread count of each."""
    counts = []
    for _ in range(batches):
        counts.append(choice.count)
        choice.record(size, *machine(choice.count))
    return counts


@pytest.mark.parametrize("most", [2, 16])
def test_long_batches_get_all_threads_where_these_have_cores(most: int) -> None:
    choice = ThreadChoice(most)
    run(choice, parallel(0.02), 12)
    assert set(run(choice, parallel(0.02), 1000)) == {most}


def test_very_long_batches_get_all_threads_after_the_first() -> None:
    choice = ThreadChoice(16)
    assert run(choice, parallel(10.0), 20) == [1, *[16] * 19]


def test_short_batches_keep_one_thread() -> None:
    assert set(run(ThreadChoice(2), parallel(0.001), 1000)) == {1}


@pytest.mark.parametrize("slow", [0.02, 1.0])
def test_a_slow_batch_changes_nothing_for_long(slow: float) -> None:
    choice = ThreadChoice(2)
    run(choice, parallel(0.0005), 100)
    run(choice, parallel(slow), 1)
    run(choice, fine_grained(0.0005), 5)
    assert set(run(choice, parallel(0.0005), 1000)) == {1}


def test_batches_that_lose_their_core_are_not_long() -> None:
    choice = ThreadChoice(2)
    run(choice, lambda threads: (0.5, 0.0005), 100)
    assert choice.count == 1


def test_threads_that_wait_for_each_other_are_given_up_and_seldom_tried_again() -> None:
    counts = run(ThreadChoice(2), fine_grained(0.02), 5000)
    assert counts.count(2) <= 0.02 * len(counts)


def test_very_long_batches_keep_threads_that_hardly_help_but_do() -> None:
    choice = ThreadChoice(2)
    machine = parallel(0.06, serial=0.14)
    run(choice, machine, 20)
    counts = run(choice, machine, 5000)
    assert counts.count(2) >= 0.98 * len(counts)


def test_fewer_threads_are_used_while_others_have_the_cores_and_more_when_they_have_gone() -> None:
    choice = ThreadChoice(4)
    run(choice, parallel(0.04), 50)
    assert choice.count == 4
    run(choice, contended(0.04, free=2), 50)
    assert choice.count <= 2
    run(choice, parallel(0.04), 2 * LONGEST_PAUSE)
    assert choice.count == 4


def test_a_machine_that_is_busy_at_first_is_used_when_it_is_free() -> None:
    choice = ThreadChoice(2)
    run(choice, contended(0.02, free=1), 2000)
    run(choice, parallel(0.02), LONGEST_PAUSE + 20)
    assert choice.count == 2


def test_batches_that_all_become_longer_keep_their_threads() -> None:
    choice = ThreadChoice(2)
    run(choice, parallel(0.02), 50)
    counts = run(choice, parallel(0.06), 1000)
    assert counts.count(2) >= 990


def test_each_kind_and_size_of_batch_has_a_count_of_its_own() -> None:
    used: list[int] = []
    threads = AdaptiveThreads(None, used.append)
    threads.limit(2)
    for _ in range(20):
        for explain, work in ((False, 0.0005), (True, 0.02)):
            threads.before(explain, 1)
            threads.after(1, *parallel(work)(used[-1]))
    threads.before(False, 1)
    assert used[-1] == 1
    threads.before(True, 1)
    assert used[-1] == 2
    threads.before(True, 16)
    assert used[-1] == 1


@pytest.mark.parametrize(("limit", "wanted", "most"), [(4, None, 4), (4, 2, 2), (1, 8, 1), (0, None, 1)])
def test_no_more_threads_are_used_than_the_server_and_the_handler_allow(
    limit: int, wanted: int | None, most: int
) -> None:
    used: list[int] = []
    threads = AdaptiveThreads(wanted, used.append)
    threads.limit(limit)
    for _ in range(20):
        threads.before(False, 1)
        threads.after(1, *parallel(1.0)(used[-1]))
    assert used[-1] == max(used) == most


def test_a_lower_limit_applies_at_once() -> None:
    used: list[int] = []
    threads = AdaptiveThreads(None, used.append)
    threads.limit(4)
    for _ in range(2):
        threads.before(False, 1)
        threads.after(1, *parallel(1.0)(used[-1]))
    threads.limit(2)
    assert used == [1, 4, 2]
