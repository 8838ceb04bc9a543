"""torchmar.tuning.cluster_room: replicas that fit, from the metrics of a server."""

from __future__ import annotations

import pytest

from torchmar import metrics
from torchmar.cluster.capacity import Resources
from torchmar.errors import TorchmarError
from torchmar.tuning.cluster_room import nodes_of, room
from torchmar.tuning.space import Space

TEXT = """\
torchmar_node_resources{node="127.0.0.1 (a)",resource="cpus",} 3.0
torchmar_node_resources{node="127.0.0.1 (a)",resource="gpus",} 0.0
torchmar_node_resources{node="127.0.0.1 (a)",resource="memory",} 4e9
torchmar_node_resources{node="127.0.0.1 (b)",resource="cpus",} 2.0
torchmar_node_resources{node="198.51.100.7 (c)",resource="cpus",} 8.0
torchmar_node_resources{node="198.51.100.7 (c)",resource="ssd",} 4.0
"""
NODES = nodes_of(metrics.Reading(0.0, metrics.parse(TEXT)), "torchmar_node_resources")


def test_resources_of_nodes_are_read_from_metrics() -> None:
    assert NODES["127.0.0.1 (a)"] == Resources(cpus=3, memory=4e9)
    assert NODES["198.51.100.7 (c)"] == Resources(cpus=8, others={"ssd": 4})


def test_replicas_fit_by_their_cpus_and_cores_of_this_machine_count_once() -> None:
    found = room(NODES, NODES, Resources(), 2)
    assert found.replicas == ((1, 13), (2, 6), (4, 2), (8, 1))
    assert (found.cores, found.nodes) == (2 + 8, 3)


def test_replicas_fit_where_their_other_resources_are() -> None:
    assert room(NODES, NODES, Resources(others={"ssd": 1}), 2).replicas == ((1, 4), (2, 4), (4, 2), (8, 1))


def test_what_other_servers_use_is_not_free() -> None:
    free = {**NODES, "198.51.100.7 (c)": Resources(cpus=1)}
    assert room(NODES, free, Resources(), 2).replicas == ((1, 6), (2, 2), (3, 1))
    with pytest.raises(TorchmarError, match="a replica needs 1 CPUs, and no node has free as much"):
        room(NODES, {name: Resources() for name in NODES}, Resources(), 2)


def test_the_grid_has_the_replicas_that_fit() -> None:
    settings = list(Space(cores=2, replicas=((1, 13), (4, 2), (8, 1))).settings())
    layouts = {(setting.workers, setting.threads) for setting in settings}
    assert layouts == {(1, 1), (1, 4), (1, 8), (2, 1), (2, 4), (3, 1), (4, 1), (8, 1), (13, 1)}
