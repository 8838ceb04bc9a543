"""The documented differences between TorchServe and the built-in server, one module for each subject.

The table of docs/differences.md is made from them. `cluster` has those between the built-in server and the same with
replicas on a cluster.
"""

from __future__ import annotations

from torchmar.engines import EngineName
from torchmar.parity.differences import archives, cluster, configuration, grpc, http, inference, management, metrics
from torchmar.parity.known_difference import KnownDifference
from torchmar.parity.responses import Mismatch

DIFFERENCES: tuple[KnownDifference, ...] = (
    *http.DIFFERENCES,
    *inference.DIFFERENCES,
    *management.DIFFERENCES,
    *archives.DIFFERENCES,
    *configuration.DIFFERENCES,
    *metrics.DIFFERENCES,
    *grpc.DIFFERENCES,
)


def documented(
    mismatch: Mismatch, between: tuple[EngineName, EngineName] = ("torchserve", "builtin")
) -> KnownDifference | None:
    """Return the documented difference that explains a mismatch between two engines, if any."""
    candidates = (
        *(DIFFERENCES if "torchserve" in between else ()),
        *(cluster.DIFFERENCES if "ray" in between else ()),
    )
    return next((difference for difference in candidates if difference.explains(mismatch)), None)


def markdown() -> str:
    """Return the table of docs/differences.md."""
    rows = [("what", "TorchServe 0.12.0", "here", "why"), ("---",) * 4]
    rows += [
        (difference.what, difference.torchserve, difference.builtin, f"{difference.reason} (`{difference.id}`)")
        for difference in DIFFERENCES
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
