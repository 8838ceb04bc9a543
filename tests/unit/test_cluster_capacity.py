"""torchmar.cluster.capacity: what fits no node is said with numbers."""

from __future__ import annotations

import pytest

from torchmar.cluster.capacity import Resources, problem

GIB = float(1 << 30)
NODES = {
    "a": Resources(cpus=4, gpus=1, memory=8 * GIB, others={"ssd": 4, "node:10.0.0.1": 1}),
    "b": Resources(cpus=2, memory=4 * GIB),
}


@pytest.mark.parametrize(
    ("needed", "count"),
    [
        (Resources(cpus=1), 6),
        (Resources(cpus=0.1, gpus=0.1), 10),
        (Resources(cpus=1, memory=2 * GIB), 6),
        (Resources(), 100),
    ],
)
def test_replicas_that_fit_are_no_problem(needed: Resources, count: int) -> None:
    assert not problem(needed, count, NODES)


@pytest.mark.parametrize(
    ("needed", "count", "text"),
    [
        (Resources(cpus=8), 1, "a replica needs 8 CPUs, and no node has as much: node a has 4 CPUs, 1 GPUs, 8.0 GiB"),
        (Resources(cpus=1, gpus=0.5), 3, "3 replicas need 1 CPUs, 0.5 GPUs each, and there is room for 2"),
        (Resources(cpus=3), 2, "2 replicas need 3 CPUs each, and there is room for 1"),
        (Resources(cpus=1, memory=5 * GIB), 2, "room for 1"),
        (Resources(cpus=1, others={"a100": 1}), 1, "a replica needs 1 CPUs, 1 a100, and no node has as much: node a"),
        (Resources(cpus=1, others={"ssd": 2}), 3, "room for 2: node a has 4 CPUs, 1 GPUs, 8.0 GiB of memory, 4 ssd"),
    ],
)
def test_replicas_that_do_not_fit_are_named_with_the_room_of_nodes(needed: Resources, count: int, text: str) -> None:
    assert text in problem(needed, count, NODES)


def test_a_cluster_without_nodes_is_a_problem() -> None:
    assert problem(Resources(), 1, {}) == "the cluster has no node"
