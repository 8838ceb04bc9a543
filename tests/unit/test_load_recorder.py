"""The account of a measurement; all times are the tests' own."""

from __future__ import annotations

import pytest

from torchmar.load.recorder import Recorder, counts


def test_requests_of_the_warm_up_are_not_counted() -> None:
    recorder = Recorder(100.0, 5.0)
    recorder.on_due(99.9, 99.9)
    recorder.on_answer(99.9, 99.9, 99.95)
    recorder.on_failure(99.95, 99.96, "timeout", "")
    assert recorder.sent == recorder.ended == 0
    assert recorder.latency(20) is None
    assert recorder.failures() == ()


def test_latency_counts_from_the_time_when_a_request_was_to_be_sent() -> None:
    recorder = Recorder(0.0, 5.0)
    recorder.on_due(1.0, 1.5)
    recorder.on_answer(1.0, 1.5, 1.52)
    latency = recorder.latency(20)
    assert latency is not None
    assert latency.p50 == pytest.approx(520, rel=0.001)
    assert recorder.send_delay_p99_ms == pytest.approx(500, rel=0.001)


def test_a_closed_loop_counts_from_the_time_of_sending() -> None:
    recorder = Recorder(0.0, 5.0, from_due=False)
    recorder.on_due(1.0, 1.5)
    recorder.on_answer(1.0, 1.5, 1.52)
    latency = recorder.latency(20)
    assert latency is not None
    assert latency.p50 == pytest.approx(20, rel=0.001)


def test_an_answer_counts_for_the_throughput_when_it_arrives_and_for_latency_when_its_request_was_due() -> None:
    recorder = Recorder(10.0, 5.0)  # windows of 0.25 s
    recorder.on_due(10.1, 10.1)
    recorder.on_answer(10.1, 10.1, 11.1)
    windows = recorder.windows()
    assert len(windows) == 20
    assert [(window.sent, window.completed, window.in_flight) for window in windows[:5]] == [
        (1, 0, 1),
        (0, 0, 1),
        (0, 0, 1),
        (0, 0, 1),
        (0, 1, 0),
    ]
    assert windows[0].p50_ms == pytest.approx(1000, rel=0.001)
    assert windows[4].p50_ms is None
    assert recorder.rates(20)[4] == pytest.approx(4.0)


def test_answers_after_the_end_count_for_latency_and_not_for_the_throughput() -> None:
    recorder = Recorder(0.0, 5.0)
    recorder.on_due(4.9, 4.9)
    assert recorder.on_answer(4.9, 4.9, 6.9) == (-1, True)
    latency = recorder.latency(20)
    assert latency is not None
    assert latency.max == pytest.approx(2000, rel=0.001)
    assert recorder.throughput(20)[0] == 0
    assert (recorder.sent, recorder.answered) == (1, 1)


def test_errors_are_counted_by_kind_with_their_first_example() -> None:
    recorder = Recorder(0.0, 5.0)
    for number, kind in enumerate(("status 503", "timeout", "status 503")):
        recorder.on_due(1.0, 1.0)
        recorder.on_failure(1.0, 2.0, kind, f"example {number}")
    assert [(failure.kind, failure.count, failure.example) for failure in recorder.failures()] == [
        ("status 503", 2, "example 0"),
        ("timeout", 1, "example 1"),
    ]
    assert (recorder.answered, recorder.failed, recorder.ended) == (2, 3, 3)
    assert recorder.latency(20) is None


def test_a_wrong_answer_is_taken_from_the_throughput() -> None:
    recorder = Recorder(0.0, 5.0)
    recorder.on_due(1.0, 1.0)
    tag = recorder.on_answer(1.0, 1.0, 1.1)
    assert recorder.throughput(20)[0] == pytest.approx(0.2)
    recorder.on_wrong(tag)
    assert recorder.throughput(20)[0] == 0
    assert recorder.wrong == 1


def test_a_wrong_answer_of_the_warm_up_is_not_counted() -> None:
    recorder = Recorder(10.0, 5.0)
    recorder.on_wrong(recorder.on_answer(9.9, 9.9, 9.95))
    recorder.on_wrong(recorder.on_answer(9.9, 9.9, 10.05))  # arrived in the measured time
    assert recorder.wrong == 0
    assert recorder.throughput(20)[0] == 0


def test_only_windows_that_have_ended_are_reported() -> None:
    recorder = Recorder(0.0, 5.0)
    assert len(recorder.windows(now=1.1)) == 4
    assert recorder.windows(now=0.1) == ()


def test_a_short_measurement_has_fewer_windows() -> None:
    assert len(Recorder(0.0, 0.6).windows()) == 2
    assert len(Recorder(0.0, 0.1).windows()) == 1


def test_intervals_are_of_the_windows() -> None:
    recorder = Recorder(0.0, 10.0)
    for number in range(1000):
        due = number / 100
        recorder.on_due(due, due)
        recorder.on_answer(due, due, due + 0.020 + 0.001 * (number % 3))
    latency = recorder.latency(20)
    assert latency is not None
    assert latency.p50_interval is not None
    assert latency.p50_interval[0] <= latency.p50 <= latency.p50_interval[1]
    rate, interval = recorder.throughput(20)
    assert interval is not None
    assert interval[0] <= rate <= interval[1]
    assert counts(recorder.histogram(20)).count == 1000
