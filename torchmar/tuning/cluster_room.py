"""The number of replicas that the nodes of a cluster have room for, from the metrics of its server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import ValidationError

from torchmar import metrics
from torchmar.archive import Archive
from torchmar.cluster import capacity
from torchmar.cluster.capacity import Resources
from torchmar.connection import Endpoint
from torchmar.connection.local import is_local
from torchmar.errors import TorchmarError
from torchmar.load.other_machines import host_of
from torchmar.metrics import Reading
from torchmar.server_config import Replica

_ALL, _FREE = "torchmar_node_resources", "torchmar_node_resources_free"
_OWN = ("cpus", "gpus", "memory")
_SECONDS = 30.0  # limit for the server to read the resources of the nodes
_PAUSE_SECONDS = 0.2
_THREADS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class ClusterRoom:
    """The replicas that fit on the nodes of a cluster.

    Attributes:
        replicas: number of replicas that fit, by the number of CPUs of a replica, which is also its number of threads.
        cores: cores of the machines with nodes; this machine counts once, even if it has several nodes.
        nodes: number of nodes.
    """

    replicas: tuple[tuple[int, int], ...]
    cores: float
    nodes: int


def measure(address: str, server: Endpoint, archive: Archive, cores: int) -> ClusterRoom:
    """Return the replicas that fit on the nodes of a cluster.

    Args:
        address: address of the metrics API of the server.
        server: the cluster's server, which has no replicas yet.
        archive: archive to tune.
        cores: number of cores of this machine.

    Raises:
        TorchmarError: there is no room for a replica, or the archive would run on GPUs.
    """
    deadline = time.monotonic() + _SECONDS
    while not (free := nodes_of(reading := metrics.read(address, server), _FREE)):
        if time.monotonic() > deadline:
            raise TorchmarError("the server does not report the nodes of the cluster", hint="torchmar logs")
        time.sleep(_PAUSE_SECONDS)
    nodes = nodes_of(reading, _ALL)
    needs = _needs(archive)
    if any(node.gpus for node in nodes.values()) and not _on_cpu(archive):
        raise TorchmarError(
            f"{archive.manifest.name} would run on the GPUs of the cluster, which a tuning on Ray does not measure",
            hint="deviceType: cpu in its configuration, or torchmar bench with each number of replicas",
        )
    return room(nodes, free, needs, cores)


def room(nodes: Mapping[str, Resources], free: Mapping[str, Resources], needs: Resources, cores: int) -> ClusterRoom:
    """Return the replicas that fit on nodes.

    Args:
        nodes: all resources of the nodes, by name.
        free: their free resources.
        needs: resources of a replica, besides its CPUs.
        cores: number of cores of this machine.

    Raises:
        TorchmarError: there is no room for a replica with one CPU.
    """
    if problem := capacity.problem(replace(needs, cpus=1.0), 1, free, free=True):
        raise TorchmarError(problem, hint="torchmar status shows what the models of other servers use")
    largest = max(int(node.cpus) for node in free.values())
    threads = sorted({*(number for number in _THREADS if number <= largest), largest})
    counts = [(cpus, sum(node.times(replace(needs, cpus=float(cpus))) for node in free.values())) for cpus in threads]
    remote = sum(node.cpus for name, node in nodes.items() if not is_local(host_of(name)))
    local = cores if any(is_local(host_of(name)) for name in nodes) else 0
    return ClusterRoom(
        replicas=tuple((cpus, count) for cpus, count in counts if count), cores=local + remote, nodes=len(nodes)
    )


def nodes_of(reading: Reading, name: str) -> dict[str, Resources]:
    """Return the resources of each node, by its name, from a metric."""
    by_node: dict[str, dict[str, float]] = {}
    for sample in reading.samples:
        if sample.name == name:
            by_node.setdefault(sample.labels["node"], {})[sample.labels["resource"]] = sample.value
    return {
        node: Resources(
            **{kind: amounts.get(kind, 0.0) for kind in _OWN},
            others={kind: amount for kind, amount in amounts.items() if kind not in _OWN},
        )
        for node, amounts in by_node.items()
    }


def _needs(archive: Archive) -> Resources:
    """Return the resources that a replica of an archive needs, besides its CPUs."""
    replica = _replica(archive)
    return Resources(gpus=replica.gpus or 0.0, memory=float(replica.memory or 0), others=replica.resources)


def _on_cpu(archive: Archive) -> bool:
    return archive.config.get("deviceType") == "cpu" or _replica(archive).gpus == 0


def _replica(archive: Archive) -> Replica:
    section = archive.config.get("torchmar")
    replica = section.get("replica") if isinstance(section, dict) else None
    try:
        return Replica.model_validate(replica or {})
    except ValidationError as error:
        raise TorchmarError(f"torchmar: replica: in the configuration is wrong: {error.errors()[0]['msg']}") from None
