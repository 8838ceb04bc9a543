"""Metrics of a cluster: its nodes with their resources, and the replicas on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchmar.cluster.capacity import Resources
from torchmar.cluster.directory import ReplicaState
from torchmar.server.telemetry.metrics import Metrics, Values
from torchmar.server.telemetry.prometheus import MetricSpec

_OF_RAY = ("node:", "object_store_memory", "accelerator_type:")  # prefixes of resources that Ray adds to a node
_REPLICA = ("model_name", "model_version", "node", "replica")
_NODE = ("node", "resource")
_REPLICAS = MetricSpec(
    "torchmar_node_replicas", "gauge", "Replicas on a node", ("model_name", "model_version", "node", "state")
)
_MEMORY = MetricSpec("torchmar_replica_memory_bytes", "gauge", "Memory of a replica's workers", _REPLICA)
_CPU = MetricSpec(
    "torchmar_replica_cpu_seconds_total", "counter", "CPU time of a replica and of its workers, in seconds", _REPLICA
)
_REQUESTS = MetricSpec("torchmar_replica_requests_total", "counter", "Requests that a replica has answered", _REPLICA)
_TOTAL = MetricSpec(
    "torchmar_node_resources", "gauge", "What a node has: cpus, gpus, memory in bytes, and its own resources", _NODE
)
_FREE = MetricSpec("torchmar_node_resources_free", "gauge", "What no replica has reserved of a node", _NODE)

#: The replicas of each model and version.
Replicas = Mapping[tuple[str, str], list[ReplicaState]]


def add(
    metrics: Metrics,
    replicas: Callable[[], Replicas],
    nodes: Callable[[], tuple[Mapping[str, Resources], Mapping[str, Resources]]],
) -> None:
    """Register the metrics of a cluster.

    Args:
        metrics: metrics of the server.
        replicas: returns the running replicas.
        nodes: returns the resources of each node: all of them, and the free ones.
    """

    def by_replica(value: Callable[[ReplicaState], float]) -> Callable[[], Values]:
        return lambda: {
            (*version, state.node, state.id): value(state) for version, states in replicas().items() for state in states
        }

    metrics.add_measured(_REPLICAS, lambda: _count(replicas()))
    metrics.add_measured(_MEMORY, by_replica(_memory))
    metrics.add_measured(_CPU, by_replica(lambda state: state.cpu_seconds))
    metrics.add_measured(_REQUESTS, by_replica(lambda state: state.requests))
    metrics.add_measured(_TOTAL, lambda: _resources(nodes()[0]))
    metrics.add_measured(_FREE, lambda: _resources(nodes()[1]))


def _memory(state: ReplicaState) -> float:
    """Return the memory of all workers of a replica, in bytes."""
    return state.memory + sum(worker.memory for workers in state.stages.values() for worker in workers)


def _count(replicas: Replicas) -> Values:
    counts: dict[tuple[str, ...], float] = {}
    for version, states in replicas.items():
        for state in states:
            labels = (*version, state.node, state.state)
            counts[labels] = counts.get(labels, 0) + 1
    return counts


def _resources(nodes: Mapping[str, Resources]) -> Values:
    values: dict[tuple[str, ...], float] = {}
    for name, node in nodes.items():
        values |= {(name, "cpus"): node.cpus, (name, "gpus"): node.gpus, (name, "memory"): node.memory}
        values |= {(name, other): amount for other, amount in node.others.items() if not other.startswith(_OF_RAY)}
    return values
