"""Load on a server of known behaviour. What a busy machine may change is claimed in one direction only."""

from __future__ import annotations

import _thread
import threading
from pathlib import Path

import pytest

from tests.support.known_server import Behaviour, right_answer, running
from torchmar.connection import Endpoint
from torchmar.errors import ConnectError, NotFoundError, TorchmarError
from torchmar.exchange import Request
from torchmar.load import expectations
from torchmar.load.answers import Expected
from torchmar.load.measuring import Progress, StepSpec, invalid_reasons, measure
from torchmar.load.recorder import Recorder
from torchmar.load.results import SelfCheck, Step
from torchmar.load.target import Target
from torchmar.load.workload import Case, Workload

WORKLOAD = Workload("inputs", tuple(Case(f"{name}.txt", Request(name.encode(), "text/plain")) for name in "abc"))


def _target(address: str) -> Target:
    return Target(endpoint=Endpoint(inference=address, tokens={}), model="known")


def _measure(behaviour: Behaviour, **spec: object) -> Step:
    values: dict[str, object] = {"duration_s": 1.0, "warmup_s": 0.2, "rate": 50.0}
    with running(behaviour) as server:
        target = _target(server.address)
        expected = expectations.gather(target, WORKLOAD)
        assert expected.compared == len(WORKLOAD.cases)
        return measure(target, WORKLOAD, expected, StepSpec(**{**values, **spec}))  # type: ignore[arg-type]


def test_an_open_loop_sends_at_its_rate_and_measures_a_constant_delay() -> None:
    step = _measure(Behaviour(), arrivals="constant")
    assert step.complete
    assert step.sent == step.completed == 50
    assert step.errors == ()
    assert step.wrong_answers == 0
    assert step.latency_ms is not None
    assert step.latency_ms.p50 >= 20
    assert sum(count for _, count in step.histogram.buckets) == 50
    assert sum(window.sent for window in step.windows) == 50


def test_the_99th_percentile_of_an_open_loop_shows_a_stall() -> None:
    # The expectations and the warm-up take some twenty predictions.
    step = _measure(Behaviour(stall_at=60, stall_s=2.0), duration_s=4.0)
    assert step.latency_ms is not None
    assert step.latency_ms.p99 >= 1500
    assert not step.stable


def test_a_closed_loop_hides_a_stall() -> None:
    # The stall begins after the warm-up, which takes at most two hundred predictions: its requests would not be counted
    # otherwise.
    step = _measure(Behaviour(delay_s=0.002, stall_at=400, stall_s=2.0), kind="closed", connections=2, duration_s=5.0)
    assert step.latency_ms is not None
    assert step.rate is None
    assert step.connections == 2
    assert step.latency_ms.max >= 1500  # two requests waited, of several hundred
    assert step.latency_ms.p95 < 1500


def test_errors_are_counted_apart() -> None:
    step = _measure(Behaviour(delay_s=0, error_every=10), rate=200.0, arrivals="constant")
    (failure,) = step.errors
    assert failure.kind == "status 503"
    assert abs(failure.count - step.sent / 10) <= 1
    assert "Prediction failed" in failure.example
    assert step.completed == step.sent
    assert sum(count for _, count in step.histogram.buckets) == step.sent - failure.count


def test_wrong_answers_are_counted_and_not_in_the_throughput() -> None:
    step = _measure(Behaviour(delay_s=0, wrong_every=10), rate=200.0, arrivals="constant")
    assert abs(step.wrong_answers - step.sent / 10) <= 1
    assert "crc32 is" in step.wrong_answer
    assert step.errors == ()
    assert step.throughput < 195


def test_an_answer_that_takes_too_long_is_a_timeout() -> None:
    step = _measure(Behaviour(delay_s=0.02, workers=1), rate=200.0, timeout_s=0.5, duration_s=1.0, warmup_s=0)
    (failure,) = step.errors
    assert failure.kind == "timeout"
    assert failure.example.endswith("no answer within 0.5 s")
    assert step.completed + failure.count == step.sent


def test_a_server_that_reads_slowly_is_slow() -> None:
    body = b"x" * 200_000  # takes two seconds to read
    workload = Workload("inputs", (Case("large", Request(body)),))
    with running(Behaviour(delay_s=0, read_bytes_per_s=100_000)) as server:
        target = _target(server.address)
        expected = expectations.Expectations((Expected("large"),), 0, ())
        spec = StepSpec(rate=4, arrivals="constant", duration_s=1.0, warmup_s=0)
        step = measure(target, workload, expected, spec)
    assert step.sent == step.completed == 4
    assert step.latency_ms is not None
    assert step.latency_ms.p50 >= 1500


def test_a_replay_sends_at_recorded_times() -> None:
    times = tuple(1000 + number * 0.05 for number in range(20))
    step = _measure(Behaviour(delay_s=0), kind="replay", times=times, duration_s=1.0)
    assert (step.sent, step.completed, step.rate, step.warmup_s) == (20, 20, 20.0, 0)


def test_few_connections_make_requests_wait_and_their_latency_includes_that() -> None:
    step = _measure(Behaviour(delay_s=0.02), rate=200.0, max_connections=1, duration_s=1.0)
    assert step.connections == 1
    assert step.latency_ms is not None
    assert step.latency_ms.p99 >= 500


def test_a_reason_ends_a_step_early() -> None:
    def stop(recorder: Recorder, now: float) -> str:
        return "enough" if now - recorder.start >= 0.5 else ""

    with running() as server:
        target = _target(server.address)
        expected = expectations.gather(target, WORKLOAD)
        step = measure(target, WORKLOAD, expected, StepSpec(rate=50, duration_s=6, warmup_s=0), stop=stop)
    assert not step.complete
    assert 0 < step.duration_s < 6


def test_ctrl_c_ends_a_step_with_what_was_measured() -> None:
    # As Ctrl-C for Python, without a signal to the process: libraries that other tests load may end with it.
    timer = threading.Timer(0.01, _thread.interrupt_main)

    def interrupt(progress: Progress) -> None:
        # Once only: a second signal might arrive when the step has ended.
        if progress.elapsed_s > 4 and timer.ident is None:
            timer.start()

    with running() as server:
        target = _target(server.address)
        expected = expectations.gather(target, WORKLOAD)
        spec = StepSpec(rate=50, duration_s=60, warmup_s=0)
        step = measure(target, WORKLOAD, expected, spec, on_progress=interrupt)
    assert not step.complete
    assert 3 <= step.duration_s < 60
    assert step.completed >= 1


def test_without_a_server_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match=r"no inference API at http://127\.0\.0\.1:9: connection refused"):
        expectations.gather(_target("http://127.0.0.1:9"), WORKLOAD)


def test_an_unknown_model_is_a_clear_error() -> None:
    with running() as server, pytest.raises(NotFoundError):
        target = Target(endpoint=Endpoint(inference=f"{server.address}/nowhere", tokens={}), model="other")
        expectations.gather(target, WORKLOAD)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (StepSpec(rate=0), "a rate is more than 0"),
        (StepSpec(rate=float("inf")), "a rate is more than 0"),
        (StepSpec(rate=1e12), "more than one client sends"),
        (StepSpec(kind="closed", connections=0), "at least one connection"),
        (StepSpec(kind="replay"), "no requests to replay"),
        (StepSpec(rate=1, duration_s=0), "more than 0 seconds"),
    ],
)
def test_a_step_without_requests_is_a_clear_error(spec: StepSpec, message: str) -> None:
    with pytest.raises(TorchmarError, match=message):
        measure(_target("http://127.0.0.1:9"), WORKLOAD, expectations.Expectations((), 0, ()), spec)


def _check(delay: float = 0.01, busy: float = 0.1, others: float | None = 0.0) -> SelfCheck:
    return SelfCheck(send_delay_p99_ms=delay, busy_fraction=busy, other_load_cores=others)


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (_check(), ""),
        (_check(delay=0.4), ""),
        (_check(delay=4), "1 % of the requests left more than 4 ms late"),
        (_check(busy=0.9), "the client used 90% of its core"),
        (_check(others=1.0), "other programs used 1.0 of 2 cores"),
        (_check(others=None), ""),
    ],
)
def test_a_run_that_the_client_or_a_neighbour_spoiled_is_invalid(check: SelfCheck, reason: str) -> None:
    assert "; ".join(invalid_reasons(check, p99_ms=20, cores=2)) == reason


def test_a_closed_loop_has_no_times_that_its_requests_can_miss() -> None:
    assert not invalid_reasons(_check(delay=4), p99_ms=20, cores=2, scheduled=False)
    assert invalid_reasons(_check(delay=4, busy=0.9), p99_ms=20, cores=2, scheduled=False)


def test_lateness_that_is_small_beside_the_latency_spoils_nothing() -> None:
    assert not invalid_reasons(_check(delay=4), p99_ms=100, cores=2)


def test_right_answers_of_the_test_server_differ() -> None:
    assert len({right_answer(case.request.body) for case in WORKLOAD.cases}) == 3
