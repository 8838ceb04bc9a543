"""The fit of the time of a batch against its size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchmar.tuning.service_model import MISFIT, BatchTimes, ServiceModel, fit

SIZES = (1, 4, 16, 64)


def exact(fixed: float, per_request: float, sizes: tuple[int, ...] = SIZES) -> list[BatchTimes]:
    return [BatchTimes(size=size, seconds=(fixed + per_request * size,) * 3) for size in sizes]


@given(st.floats(1e-5, 1), st.floats(1e-5, 1))
def test_a_line_is_found_again(fixed: float, per_request: float) -> None:
    model = fit(exact(fixed, per_request))
    assert model.linear
    assert (model.fixed, model.per_request) == pytest.approx((fixed, per_request), rel=1e-4)


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=4))
def test_neither_part_is_negative_and_times_are_positive(means: list[float]) -> None:
    model = fit([BatchTimes(size=size, seconds=(mean,)) for size, mean in zip(SIZES, means, strict=False)])
    assert model.fixed >= 0
    assert model.per_request >= 0
    assert all(model.mean(size) > 0 for size in (1, 2, 3, 10, 100, 1000))


def test_a_curve_that_is_no_line_is_interpolated() -> None:
    # As that of a model whose kernels change at 16 requests.
    measured = {1: 0.010, 4: 0.011, 16: 0.012, 64: 0.200}
    model = fit([BatchTimes(size=size, seconds=(mean,)) for size, mean in measured.items()])
    assert model.misfit > MISFIT
    assert {size: model.mean(size) for size in measured} == pytest.approx(measured)
    assert 0.012 < model.mean(32) < 0.200
    assert model.mean(128) > 0.200


def test_one_measured_size_gives_a_time_for_each_request() -> None:
    model = fit(exact(0.0, 0.01, (4,)))
    assert (model.mean(1), model.mean(8)) == pytest.approx((0.01, 0.08))


def test_noise_is_that_of_the_measured_batches() -> None:
    model = fit([BatchTimes(size=1, seconds=(0.01, 0.02, 0.03)), BatchTimes(size=8, seconds=(0.05, 0.05))])
    assert model.times(1) == pytest.approx([ratio * model.mean(1) for ratio in (0.5, 1.0, 1.5)])
    assert set(model.times(8)) == {model.mean(8)}
    assert sum(model.times(3)) / len(model.times(3)) == pytest.approx(model.mean(3))


def test_cores_are_cpu_time_over_time() -> None:
    model = fit(
        [BatchTimes(size=1, seconds=(0.01,), cpu_seconds=0.01), BatchTimes(size=8, seconds=(0.02,), cpu_seconds=0.038)]
    )
    assert model.cores(1) == pytest.approx(1.0)
    assert model.cores(16) == pytest.approx(1.9)


def test_scaling_changes_every_time() -> None:
    model = ServiceModel(fixed=0.002, per_request=0.004).scaled(1.5)
    assert model.mean(1) == pytest.approx(0.009)
    assert model.scaled(2).mean(1) == pytest.approx(0.018)
