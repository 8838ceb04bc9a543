"""torchmar.deployment.bin_packing puts workers on GPUs: nothing over-committed, replicas spread, pins kept."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchmar.deployment import gpu_sizes
from torchmar.deployment.bin_packing import Demand, assign
from torchmar.errors import TorchmarError

GIB = 2**30
SIZES = st.lists(st.sampled_from([4, 8, 12, 16]), min_size=1, max_size=4)


@st.composite
def demands(draw: st.DrawFn, sizes: list[int], memory: st.SearchStrategy[int] | None = None) -> list[Demand]:
    ids = st.integers(0, len(sizes) - 1)
    pins = st.none() | st.lists(ids, min_size=1, unique=True).map(tuple)
    spread = st.none() | st.integers(1, 4)
    drawn_demands = []
    for index in range(draw(st.integers(1, 4))):
        workers = draw(st.integers(1, 4))
        need = draw(memory if memory is not None else st.integers(0, 8))
        fixed = draw(st.none() | st.lists(ids, min_size=workers, max_size=workers).map(tuple))
        devices = None if fixed else draw(pins)
        drawn_demands.append(Demand(f"m{index}", workers, need, devices, draw(spread), fixed))
    return drawn_demands


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[Demand]]:
    sizes = draw(SIZES)
    return sizes, draw(demands(sizes))


def possible(sizes: list[int], some: list[Demand]) -> bool:
    """Try every arrangement of small problems."""
    choices = []
    for demand in some:
        if demand.fixed is not None:
            choices.append([demand.fixed])
            continue
        allowed = demand.devices if demand.devices is not None else range(len(sizes))
        each = itertools.combinations_with_replacement(sorted(allowed), demand.workers)
        choices.append([choice for choice in each if demand.spread is None or len(set(choice)) <= demand.spread])
    for chosen in itertools.product(*choices):
        used: Counter[int] = Counter()
        for demand, devices in zip(some, chosen, strict=True):
            for device in devices:
                used[device] += demand.memory
        if all(used[device] <= size for device, size in enumerate(sizes)):
            return True
    return False


@settings(deadline=None)
@given(problems())
def test_no_gpu_is_overfull_and_pinned_or_present_workers_stay(
    problem: tuple[list[int], list[Demand]],
) -> None:
    sizes, some = problem
    try:
        placement = assign(sizes, some)
    except TorchmarError:
        return
    used: Counter[int] = Counter()
    for demand, devices in zip(some, placement, strict=True):
        assert len(devices) == demand.workers
        assert demand.fixed is None or devices == demand.fixed
        assert demand.devices is None or set(devices) <= set(demand.devices)
        assert demand.spread is None or demand.fixed is not None or len(set(devices)) <= demand.spread
        for device in devices:
            used[device] += demand.memory
    assert all(used[device] <= size for device, size in enumerate(sizes))


@settings(deadline=None)
@given(problems())
def test_rejected_demands_fit_in_no_arrangement(problem: tuple[list[int], list[Demand]]) -> None:
    sizes, some = problem
    try:
        assign(sizes, some)
    except TorchmarError:
        assert not possible(sizes, some)
    else:
        assert possible(sizes, some)


@given(problems())
@settings(deadline=None)
def test_the_same_demands_get_the_same_places(problem: tuple[list[int], list[Demand]]) -> None:
    sizes, some = problem

    def packed() -> object:
        try:
            return assign(sizes, some)
        except TorchmarError as error:
            return error.message

    assert packed() == packed()


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2))
def test_replicas_are_spread_evenly_where_there_is_room(count: int, workers: int, memory: int) -> None:
    (devices,) = assign([100] * count, [Demand("m", workers, memory)])
    on_each = [devices.count(device) for device in range(count)]
    assert max(on_each) - min(on_each) <= 1


def test_small_models_share_a_gpu_and_leave_another_free_for_a_large_one() -> None:
    small = [Demand(f"small{index}", 1, 20 * GIB) for index in range(4)]
    placement = assign([80 * GIB, 80 * GIB], [*small, Demand("large", 1, 70 * GIB)])
    assert len(set(placement[:4])) == 1
    assert placement[4] != placement[0]


def test_demands_that_cannot_fit_are_rejected_with_the_numbers() -> None:
    with pytest.raises(TorchmarError) as caught:
        assign([80 * GIB, 40 * GIB], [Demand("one 1.0", 2, 39 * GIB), Demand("two 2.1", 3, 30 * GIB)])
    assert caught.value.message.splitlines() == [
        "the workers do not fit on the GPUs: a worker of two 2.1 needs 30.0 GiB",
        "  GPU 0: 11.0 GiB of 80.0 GiB free; one 1.0 1 x 39.0 GiB, two 2.1 1 x 30.0 GiB",
        "  GPU 1: 1.0 GiB of 40.0 GiB free; one 1.0 1 x 39.0 GiB",
        "  not placed: two 2.1 2 x 30.0 GiB",
    ]


@pytest.mark.parametrize(
    ("sizes", "demand", "message"),
    [
        ([], Demand("m", 1), "there is no GPU"),
        ([8], Demand("m", 1, devices=(3,)), "m needs GPU 3; there are 1 (0 to 0)"),
        ([8], Demand("m", 2, 8, fixed=(0, 0)), "the workers on GPU 0 need more memory than it has"),
    ],
)
def test_an_impossible_demand_is_an_error(sizes: list[int], demand: Demand, message: str) -> None:
    with pytest.raises(TorchmarError) as caught:
        assign(sizes, [demand])
    assert message in caught.value.message


def test_thousands_of_workers_are_placed() -> None:
    placement = assign([3000] * 8, [Demand(f"m{index}", 8, 9) for index in range(300)])
    assert all(sorted(devices) == list(range(8)) for devices in placement)


def test_an_impossible_arrangement_of_many_workers_is_given_up_in_time() -> None:
    with pytest.raises(TorchmarError, match="do not fit"):
        assign([100, 90, 80, 70, 60], [Demand(f"m{index}", 3, 20 + index) for index in range(12)])


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("2x80GiB", (80 * GIB, 80 * GIB)),
        ("80 GiB, 40GiB", (80 * GIB, 40 * GIB)),
        ("1x500MB,2x1.5GiB", (500_000_000, 3 * GIB // 2, 3 * GIB // 2)),
    ],
)
def test_gpus_are_written_as_how_many_of_which_size(text: str, sizes: tuple[int, ...]) -> None:
    assert gpu_sizes.parse(text) == sizes


@pytest.mark.parametrize("text", ["", "two", "0x80GiB", "2x", "80", "2x80GiB,", "-1GiB", "0GiB", "80GiBs"])
def test_gpus_in_another_notation_are_rejected(text: str) -> None:
    with pytest.raises(TorchmarError, match=r"is no list of GPUs|is no size"):
        gpu_sizes.parse(text)
