"""Workers that are replicas on a cluster (the engine ray): differences from the built-in server."""

from __future__ import annotations

from torchmar.parity.known_difference import KnownDifference


def _described(worker: str) -> str:
    """Return a pattern of descriptions of which only parts of workers are shown."""
    workers = rf"\[({worker}(, )?)*\]"
    stages = rf"{{('\w+': {workers}(, )?)*}}"
    return rf"^\[({{'workers': {workers}(, 'stages': {stages})?}}(, )?)*\]$"


DIFFERENCES = (
    KnownDifference(
        id="replicas",
        what="a worker in the description of a model",
        torchserve="neither `node` nor `device`, also on the built-in server",
        builtin="with Ray's engine also `node` and `device`",
        reason="users should know where a replica runs",
        cases=".*",
        aspects="body",
        first=_described("{}"),
        second=_described("{'node': '[^']*', 'device': '[^']*'}"),
    ),
    KnownDifference(
        id="node-metrics",
        what="metrics of nodes and replicas",
        torchserve="none, also on the built-in server",
        builtin="with Ray's engine `torchmar_node_*` and `torchmar_replica_*`",
        reason="the load of each node should be known",
        cases=".*",
        aspects="body",
        first=r"^\[\]$",
        second=r"^\[('torchmar_(node|replica)_[^']*'(, )?)*\]$",
    ),
)
