"""torchmar.server.telemetry.history keeps ten minutes of load in bounded memory."""

from __future__ import annotations

import math

import pytest

from torchmar.server.telemetry.history import History, Sample, Tick, Workers, percentile
from torchmar.server.telemetry.metrics import LATENCY_SECONDS

BUCKETS = len(LATENCY_SECONDS) + 1


def buckets(**counts: int) -> tuple[int, ...]:
    """Return counts by bucket: ``b3=2`` is two in the fourth."""
    return tuple(counts.get(f"b{index}", 0) for index in range(BUCKETS))


def sample(succeeded: int = 10, failures: dict[int, int] | None = None, bucket: int = 4) -> Sample:
    latency = buckets(**{f"b{bucket}": succeeded})
    return Sample(
        succeeded, failures or {}, latency, latency, (succeeded, *[0] * 9), 0.008 * succeeded, 0.001 * succeeded
    )


def tick(
    time: float, samples: dict[tuple[str, str], Sample], changed: dict[tuple[str, str], Workers], total: Workers
) -> Tick:
    return Tick(time, 1.0, total, samples, changed)


ONE, TWO = Workers(1, 1, 0), Workers(1, 2, 5)


def test_a_tick_is_a_row_of_the_server_of_a_model_and_of_a_version() -> None:
    history = History()
    assert history.row() is None and history.latest is None
    samples = {("a", "1.0"): sample(10), ("a", "2.0"): sample(4, {503: 1}), ("b", "1.0"): sample(6, bucket=7)}
    changed = {("a", "1.0"): ONE, ("a", "2.0"): TWO, ("b", "1.0"): ONE}
    history.add(tick(100, samples, changed, Workers(3, 4, 5)))
    whole, of_a, of_version = history.row(), history.row("a"), history.row("a", "2.0")
    assert whole and of_a and of_version
    assert (whole["requests"], whole["failed"], whole["failures"]) == (21, 1, {"503": 1})
    assert (whole["ready"], whole["wanted"], whole["pending"]) == (3, 4, 5)
    assert (of_a["requests"], of_a["ready"], of_a["wanted"], of_a["pending"]) == (15, 2, 3, 5)
    assert (of_version["requests"], of_version["ready"], of_version["batches"][0]) == (5, 1, 4)
    assert of_version["mean_ms"] == 8 and of_version["queue_ms"] == 1
    assert 5 < of_version["p50_ms"] < 10 < whole["p99_ms"]
    assert dict(history.loads()).keys() == samples.keys()


def test_seconds_without_requests_have_no_latency_and_the_workers_of_before() -> None:
    history = History()
    history.add(tick(100, {("a", "1.0"): sample()}, {("a", "1.0"): TWO}, TWO))
    history.add(tick(101, {}, {}, TWO))
    history.add(tick(102, {}, {("a", "1.0"): Workers(0, 0, 0)}, Workers(0, 0, 0)))
    columns = history.columns("a")
    assert columns["requests"] == [10, 0, 0] and columns["p99_ms"][1:] == [None, None]
    assert columns["wanted"] == [2, 2, 0]
    assert history.columns("a", since=101)["time"] == [102]
    assert history.columns("nobody")["ready"] == [0, 0, 0]


def test_old_ticks_are_dropped_and_what_they_said_of_workers_is_kept() -> None:
    history = History(seconds=3)
    for second in range(10):
        history.add(tick(second, {}, {("a", "1.0"): ONE} if second == 0 else {}, ONE))
    columns = history.columns("a")
    assert columns["time"] == [7, 8, 9] and columns["ready"] == [1, 1, 1]


def test_a_summary_has_the_percentiles_of_all_seconds() -> None:
    history = History()
    history.add(tick(100, {("a", "1.0"): sample(90), ("a", "2.0"): sample(1)}, {}, ONE))
    history.add(tick(101, {("a", "1.0"): sample(10, {500: 4, 503: 1}, bucket=8)}, {}, ONE))
    assert history.summaries("a").keys() == {("a", "1.0"), ("a", "2.0")} and history.summaries("b") == {}
    summary = history.summaries()["a", "1.0"]
    assert (summary["request_count"], summary["failed_count"], summary["seconds"]) == (105, 5, 2)
    assert summary["p50_ms"] < 10 < 100 < summary["p99_ms"] and summary["failures"] == {"500": 4, "503": 1}


def test_what_a_server_does_not_report_is_none_and_its_failures_are_those_of_all_models() -> None:
    history = History()
    busy = {("a", "1.0"): Sample(10, None, None, None, None, 0.08, 0.02)}
    history.add(Tick(100, 2.0, ONE, busy, {("a", "1.0"): ONE}, {"5XX": 4}))
    history.add(Tick(102, 2.0, ONE, {}, {}, {}))
    whole, of_a = history.columns(), history.columns("a")
    assert whole["requests"] == of_a["requests"] == [5, 0]
    assert whole["failed"] == [2, 0] and whole["failures"] == [{"5XX": 4}, None] and of_a["failed"] == [None, 0]
    assert of_a["mean_ms"] == [8, None] and of_a["queue_ms"] == [2, None]
    assert of_a["p99_ms"] == of_a["batches"] == [None, None]
    assert history.summaries()["a", "1.0"]["failed_count"] is None


def test_many_busy_versions_make_the_history_shorter() -> None:
    history = History(most_samples=100)
    for second in range(60):
        history.add(tick(second, {(f"m{number}", "1.0"): sample() for number in range(10)}, {}, ONE))
    assert history.columns()["time"] == list(range(50, 60))


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_percentiles_lie_in_the_bucket_that_has_them(share: float) -> None:
    counts = buckets(b0=50, b3=40, b6=9, b10=1)
    value = percentile(counts, share)
    rank = math.ceil(share * sum(counts))
    position = next(index for index in range(BUCKETS) if sum(counts[: index + 1]) >= rank)
    lower = LATENCY_SECONDS[position - 1] if position else 0
    assert value is not None and lower * 1000 <= value <= LATENCY_SECONDS[position] * 1000


def test_a_percentile_above_all_bounds_is_the_last_bound_and_one_of_nothing_is_none() -> None:
    assert percentile(buckets(**{f"b{BUCKETS - 1}": 3}), 0.5) == LATENCY_SECONDS[-1] * 1000
    assert percentile(buckets(), 0.5) is None
