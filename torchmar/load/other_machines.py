"""Replicas of a cluster on other machines: their CPU time and memory, from two readings of the server's metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torchmar.connection.local import is_local
from torchmar.metrics import Reading, Sample

#: Seconds after which the server's metrics contain what a replica has done: it announces that each second.
SETTLED_SECONDS = 2.5
_CPU, _MEMORY = "torchmar_replica_cpu_seconds_total", "torchmar_replica_memory_bytes"


@dataclass(frozen=True, kw_only=True)
class OtherMachines:
    """Replicas on other machines.

    Attributes:
        replicas: how many there are.
        cpu_seconds: that they have used between the readings.
        memory_bytes: of their workers, at the second reading.
    """

    replicas: int
    cpu_seconds: float
    memory_bytes: int


def has_any(now: Reading | None) -> bool:
    """Return whether a server has replicas on other machines."""
    return now is not None and any(_elsewhere(now, _CPU))


def between(before: Reading, now: Reading) -> OtherMachines:
    """Return what the replicas on other machines have used between two readings."""
    earlier = {sample.labels["replica"]: sample.value for sample in _elsewhere(before, _CPU)}
    spent = [max(0.0, each.value - earlier.get(each.labels["replica"], 0.0)) for each in _elsewhere(now, _CPU)]
    memory = sum(sample.value for sample in _elsewhere(now, _MEMORY))
    return OtherMachines(replicas=len(spent), cpu_seconds=sum(spent), memory_bytes=int(memory))


def _elsewhere(reading: Reading, name: str) -> Iterator[Sample]:
    for sample in reading.samples:
        if sample.name == name and not is_local(host_of(sample.labels["node"])):
            yield sample


def host_of(node: str) -> str:
    """Return the address in the name of a node, such as ``10.0.0.2 (1a2b3c4d)``."""
    return node.partition(" ")[0]
