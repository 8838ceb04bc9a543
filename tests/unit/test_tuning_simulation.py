"""The simulated server against formulas of queueing theory, and against its own rules."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchmar.tuning.highest_rate import highest_rate
from torchmar.tuning.service_model import BatchTimes, ServiceModel, fit
from torchmar.tuning.simulation import Stage, System, capacity, simulate

ENDLESS = 10**9
SERVICES = st.builds(ServiceModel, fixed=st.floats(1e-4, 0.05), per_request=st.floats(1e-4, 0.02))
SYSTEMS = st.builds(
    System,
    service=SERVICES,
    workers=st.integers(1, 4),
    batch_size=st.sampled_from([1, 2, 8, 32]),
    delay=st.sampled_from([None, 0.0, 0.005, 0.05]),
    cores=st.integers(1, 4),
    loop=st.sampled_from([0.0, 1e-4]),
    client=st.sampled_from([0.0, 1e-4]),
    queue_size=st.sampled_from([10, 100, ENDLESS]),
    preprocess=st.none() | st.builds(Stage, workers=st.integers(1, 2), service=SERVICES),
    postprocess=st.none() | st.builds(Stage, workers=st.integers(1, 2), service=SERVICES),
)


def inoue_bound(rate: float, per_request: float, fixed: float) -> float:
    """Return the bound of the mean latency, of Y. Inoue, "Queueing analysis of GPU-based inference servers with dynamic
    batching: a closed-form characterization", 2021 (arXiv 1912.06322), theorem 2.

    It is for one worker, batches of any size, and a batch time of ``fixed + per_request * size``.
    """
    load = rate * per_request
    first = (per_request + fixed) / (2 * (1 - load)) * (1 + 2 * rate * fixed + (1 - rate * fixed) / (1 + load))
    second = 1.5 * fixed / (1 - load) + per_request / 2 * (load + 2) / (1 - load * load)
    return min(first, second)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_request_at_a_time_is_an_md1_queue(load: float) -> None:
    seconds = 0.01
    system = System(service=ServiceModel(fixed=0, per_request=seconds), workers=1, batch_size=1, queue_size=ENDLESS)
    outcome = simulate(system, load / seconds, requests=20_000)
    assert outcome.mean == pytest.approx(seconds + load * seconds / (2 * (1 - load)), rel=0.05)


def test_workers_without_queue_give_the_time_of_a_batch() -> None:
    system = System(service=ServiceModel(fixed=0.002, per_request=0.004), workers=2, batch_size=8, cores=2)
    outcome = simulate(system, 0.01, requests=500)
    assert outcome.percentile(99) == pytest.approx(0.006)
    assert outcome.batch_sizes == {1: 500}


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(("per_request", "fixed"), [(0.004, 0.002), (0.001, 0.01), (0.0002, 0.003)])
def test_serving_all_that_waits_keeps_inoues_bound(load: float, per_request: float, fixed: float) -> None:
    service = ServiceModel(fixed=fixed, per_request=per_request)
    system = System(service=service, workers=1, batch_size=100_000, queue_size=ENDLESS)
    rate = load / per_request
    outcome = simulate(system, rate, requests=15_000 if load < 0.8 else 100_000)
    bound = inoue_bound(rate, per_request, fixed)
    assert outcome.mean < bound * 1.02
    assert outcome.mean > bound * 0.75  # "a very good approximation"


@settings(deadline=None)
@given(SYSTEMS, st.floats(1, 2000))
def test_every_request_is_completed_or_rejected_once(system: System, rate: float) -> None:
    requests = 300
    outcome = simulate(system, rate, requests=requests)
    ran = sum(size * count for size, count in outcome.batch_sizes.items())
    assert ran + outcome.rejected == requests
    assert max(outcome.batch_sizes) <= system.batch_size
    assert outcome.cores <= system.cores * (1 + 1e-9) or system.client * rate > system.cores
    assert len(outcome.latencies) <= requests - 30
    assert list(outcome.latencies) == sorted(outcome.latencies)


@settings(deadline=None)
@given(SYSTEMS, st.floats(1, 500), st.integers(0, 5))
def test_the_same_seed_gives_the_same_outcome(system: System, rate: float, seed: int) -> None:
    assert simulate(system, rate, requests=200, seed=seed) == simulate(system, rate, requests=200, seed=seed)


@settings(deadline=None)
@given(SYSTEMS, st.floats(1, 3000))
def test_no_more_requests_are_completed_than_the_capacity(system: System, rate: float) -> None:
    requests = 400
    outcome = simulate(system, rate, requests=requests)
    # A burst of arrivals uses the clients' share of the cores later than it should.
    assert (requests - outcome.rejected) / outcome.seconds < 1.2 * capacity(system)


@pytest.mark.parametrize(("workers", "batch_size", "cores"), [(1, 1, 1), (2, 8, 2), (4, 4, 2)])
def test_the_queue_grows_above_the_capacity_and_not_below(workers: int, batch_size: int, cores: int) -> None:
    service = ServiceModel(fixed=0.002, per_request=0.004)
    system = System(service=service, workers=workers, batch_size=batch_size, cores=cores, queue_size=ENDLESS)

    def growth(rate: float) -> float:
        return simulate(system, rate, requests=8_000).mean / simulate(system, rate, requests=2_000).mean

    assert growth(1.5 * capacity(system)) > 3
    assert growth(0.7 * capacity(system)) < 1.5


def test_more_workers_than_cores_do_not_raise_the_capacity() -> None:
    service = ServiceModel(fixed=0.0, per_request=0.01)
    rates = [capacity(System(service=service, workers=workers, batch_size=1, cores=2)) for workers in (1, 2, 4)]
    assert rates == pytest.approx([100, 200, 200])


def test_busy_cores_make_batches_longer() -> None:
    service = ServiceModel(fixed=0.0, per_request=0.01)
    alone = simulate(System(service=service, workers=2, batch_size=1, cores=2), 120, requests=20_000)
    shared = simulate(System(service=service, workers=2, batch_size=1, cores=1), 60, requests=20_000)
    # One core for two workers is half as fast at each of them, at the same load of each core.
    assert shared.mean > 1.2 * alone.mean
    assert shared.cores == pytest.approx(0.6, rel=0.05)


def test_torchserve_waits_for_a_batch_as_long_as_the_delay() -> None:
    service = ServiceModel(fixed=0.001, per_request=0.0)
    rare = System(service=service, workers=1, batch_size=8, delay=0.05)
    assert simulate(rare, 0.5, requests=200).percentile(50) == pytest.approx(0.051)
    full = simulate(rare, 2_000, requests=4_000)
    assert full.mean_batch > 7.5
    assert full.percentile(50) < 0.01


def test_torchserve_without_delay_takes_what_waits() -> None:
    service = ServiceModel(fixed=0.002, per_request=0.004)
    waiting, at_once = (System(service=service, workers=1, batch_size=8, delay=delay) for delay in (0.0, None))
    one, other = simulate(waiting, 150, requests=2_000), simulate(at_once, 150, requests=2_000)
    assert one.batch_sizes == other.batch_sizes
    assert one.latencies == pytest.approx(other.latencies)


def test_a_full_queue_rejects() -> None:
    service = ServiceModel(fixed=0.0, per_request=0.01)
    outcome = simulate(System(service=service, workers=1, batch_size=1, queue_size=10), 200, requests=2_000)
    assert 900 < outcome.rejected < 1_100
    assert outcome.percentile(100) <= 0.111


def test_a_stage_before_the_model_takes_its_work() -> None:
    whole = System(service=ServiceModel(fixed=0.0, per_request=0.01), workers=1, batch_size=4, cores=4)
    decode = Stage(workers=2, service=ServiceModel(fixed=0.0, per_request=0.008))
    split = System(
        service=ServiceModel(fixed=0.0, per_request=0.002), workers=1, batch_size=4, cores=4, preprocess=decode
    )
    assert capacity(whole) == pytest.approx(100)
    assert capacity(split) == pytest.approx(250)
    assert simulate(split, 90).percentile(99) < simulate(whole, 90).percentile(99)


def test_the_highest_rate_keeps_the_bound_and_a_higher_one_does_not() -> None:
    service = fit([BatchTimes(size=size, seconds=(0.002 + 0.004 * size,) * 2) for size in (1, 8)])
    system = System(service=service, workers=1, batch_size=8)
    highest = highest_rate(system, 99, lambda rate: 0.05)
    rate = highest.rate
    assert 100 < rate < capacity(system)
    assert highest.outcome == simulate(system, rate)
    assert highest.outcome.percentile(99) < 0.05
    assert simulate(system, 1.1 * rate).percentile(99) > 0.05


def test_no_rate_keeps_a_bound_below_the_time_of_one_request() -> None:
    system = System(service=ServiceModel(fixed=0.1, per_request=0.0), workers=1, batch_size=1)
    assert highest_rate(system, 50, lambda rate: 0.05).rate == 0


def test_a_short_queue_limits_the_rate_by_what_it_rejects() -> None:
    system = System(service=ServiceModel(fixed=0.0, per_request=0.01), workers=1, batch_size=1, queue_size=4)
    assert highest_rate(system, 99, lambda rate: 1.0).rejects
    assert not highest_rate(replace(system, queue_size=ENDLESS), 99, lambda rate: 0.05).rejects


@pytest.mark.parametrize("bound", [0.03, 10.0])
def test_the_highest_rate_is_the_same_wherever_the_search_begins(bound: float) -> None:
    system = System(service=ServiceModel(fixed=0.002, per_request=0.008), workers=1, batch_size=8)
    rates = [
        highest_rate(system, 99, lambda rate: bound, requests=2_000, precision=0.01, near=near).rate
        for near in (0.0, 1.0, 40.0, 80.0, 1e6)
    ]
    assert rates == pytest.approx([rates[0]] * len(rates), rel=0.03)
