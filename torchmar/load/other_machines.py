"""Replicas of a cluster on other machines: their CPU time and memory, from two readings of the server's metrics."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from torchmar.metrics import Reading, Sample

#: Seconds after which the server's metrics contain a replica's work: replicas announce it each second.
SETTLED_SECONDS = 2.5
_CPU, _MEMORY = "torchmar_replica_cpu_seconds_total", "torchmar_replica_memory_bytes"


@dataclass(frozen=True, kw_only=True)
class OtherMachines:
    """Replicas on other machines.

    Attributes:
        replicas: number of replicas.
        cpu_seconds: CPU time that they used between the readings.
        memory_bytes: memory of their workers at the second reading.
    """

    replicas: int
    cpu_seconds: float
    memory_bytes: int


def has_any(now: Reading | None, local: Set[str]) -> bool:
    """Return whether a server has replicas on other machines than the nodes with the addresses ``local``."""
    return now is not None and any(_elsewhere(now, _CPU, local))


def between(before: Reading, now: Reading, local: Set[str]) -> OtherMachines:
    """Return the use of the replicas on other machines between two readings.

    Args:
        before: the first reading.
        now: the second reading.
        local: addresses of nodes whose processes are on this machine, including those in containers.
    """
    earlier = {sample.labels["replica"]: sample.value for sample in _elsewhere(before, _CPU, local)}
    spent = [max(0.0, item.value - earlier.get(item.labels["replica"], 0.0)) for item in _elsewhere(now, _CPU, local)]
    memory = sum(sample.value for sample in _elsewhere(now, _MEMORY, local))
    return OtherMachines(replicas=len(spent), cpu_seconds=sum(spent), memory_bytes=int(memory))


def _elsewhere(reading: Reading, name: str, local: Set[str]) -> Iterator[Sample]:
    for sample in reading.samples:
        if sample.name == name and host_of(sample.labels["node"]) not in local:
            yield sample


def host_of(node: str) -> str:
    """Return the address from the name of a node, such as ``10.0.0.2 (1a2b3c4d)``."""
    return node.partition(" ")[0]
