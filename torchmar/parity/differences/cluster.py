"""Workers that are replicas on a cluster (the engine ray): differences from the built-in server."""

from __future__ import annotations

from torchmar.parity.known_difference import KnownDifference

DIFFERENCES: tuple[KnownDifference, ...] = ()
