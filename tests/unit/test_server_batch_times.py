"""torchmar.server.workers.batch_times predicts times, and job_queue leaves out jobs that would be late."""

from __future__ import annotations

import math
import time

import pytest

from torchmar.server.workers.batch_times import BatchTimes, seconds_until_free
from torchmar.server.workers.deadline_error import DeadlineError
from torchmar.server.workers.job_queue import JobQueue
from torchmar.server.workers.jobs import Job, Reply


def recorded(*batches: tuple[int, float], kind: str = "") -> BatchTimes:
    times = BatchTimes()
    for size, seconds in batches:
        times.record(kind, size, seconds)
    return times


def test_without_a_measurement_nothing_is_predicted() -> None:
    times = BatchTimes()
    assert (times.mean("", 4), times.upper("", 4), times.typical_size("")) == (0.0, 0.0, 1)


def test_the_mean_follows_and_the_margin_shrinks_where_batches_take_the_same_time() -> None:
    times = recorded((1, 1.0), *[(1, 0.1)] * 60)
    assert times.mean("", 1) == pytest.approx(0.1, rel=0.01)
    times = recorded((1, 1.0), *[(1, 0.1)] * 150)
    assert times.upper("", 1) == pytest.approx(0.1, rel=0.05)


def test_the_margin_is_that_of_all_sizes_and_grows_with_the_batches_in_a_row() -> None:
    times = recorded(*[(1, 0.1)] * 100, (8, 0.8))
    assert times.upper("", 8) == pytest.approx(0.8, rel=0.05)
    varied = recorded(*[(1, 0.09), (1, 0.11)] * 100)
    margin = varied.upper("", 1) - varied.mean("", 1)
    assert varied.upper("", 1, 4) - varied.mean("", 1) == pytest.approx(2 * margin)


def test_a_single_stall_widens_the_margin_little() -> None:
    times = recorded(*[(1, 0.001)] * 100, (1, 1.0), *[(1, 0.001)] * 40)
    assert times.upper("", 1) < 0.005


def test_the_margin_contains_nearly_all_of_varying_times() -> None:
    seconds = [0.1 + 0.05 * math.sin(index) for index in range(200)]
    times = recorded(*((1, value) for value in seconds))
    assert sum(value <= times.upper("", 1) for value in seconds) >= 190


def test_sizes_that_were_not_measured_have_the_time_of_the_next_smaller_one_or_else_the_smallest() -> None:
    times = recorded((2, 0.2), (4, 0.4))
    assert [times.mean("", size) for size in (1, 2, 3, 4, 9)] == [0.2, 0.2, 0.2, 0.4, 0.4]


def test_kinds_are_measured_apart() -> None:
    times = recorded((1, 9.0), kind="explain")
    assert times.mean("", 1) == 0.0


def test_the_typical_size_follows_the_batches() -> None:
    times = recorded(*[(1, 0.1)] * 10, *[(8, 0.1)] * 40)
    assert times.typical_size("") == 8


@pytest.mark.parametrize(
    ("batches", "seconds"),
    [(0, 0.1), (1, 0.4), (2, 1.1), (3, 1.4), (4, 2.1)],
)
def test_batches_are_dispatched_to_the_worker_that_is_free_first(batches: int, seconds: float) -> None:
    assert seconds_until_free({"a": 0.4, "b": 0.1}, batches, 1.0) == pytest.approx(seconds)


def job(name: str, replies: list[str], seconds: float | None = None) -> Job:
    def on_reply(reply: Reply) -> None:
        assert reply.status == 503
        assert reply.headers == {"Retry-After": "1"}
        replies.append(name)

    return Job(name, {}, (), on_reply, None if seconds is None else time.monotonic() + seconds)


def test_jobs_that_would_be_late_are_left_out_and_the_batch_is_filled_with_those_behind() -> None:
    replies: list[str] = []
    queue = JobQueue([job("a", replies, 5), job("b", replies, 60), job("c", replies), job("d", replies, 5)])
    batch = queue.take_batch(2, recorded((2, 10.0)))
    assert [job.request_id for job in batch] == ["b", "c"]
    assert replies == ["a"]
    assert [job.request_id for job in queue] == ["d"]


def test_the_last_of_jobs_that_would_all_be_late_is_run_so_that_the_measurement_is_renewed() -> None:
    replies: list[str] = []
    queue = JobQueue([job(name, replies, 5) for name in "abc"])
    batch = queue.take_batch(2, recorded((2, 10.0), (1, 10.0)))
    assert [job.request_id for job in batch] == ["c"]
    assert replies == ["a", "b"]


def test_the_error_says_when_to_try_again() -> None:
    assert DeadlineError("late", 2.3).headers == {"Retry-After": "3"}
    assert DeadlineError("late", 0.001).headers == {"Retry-After": "1"}
