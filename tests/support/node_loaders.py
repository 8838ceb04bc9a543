"""Replicas of a version on a node, without Ray."""

from __future__ import annotations

from torchmar.cluster.node_loader import LoaderSpec, NodeLoader
from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.pool import Pool
from torchmar.server.workers.pool_options import PoolObserver


def replica_of(spec: LoaderSpec, observer: PoolObserver) -> Pool:
    """Return the pool of a replica, whose worker the node's loader starts."""
    return Pool(ForkServer(spec.environment), spec.options, observer, loader=NodeLoader(spec))
