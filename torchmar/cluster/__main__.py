"""``python -m torchmar.cluster -f CONFIG``: run the front of a cluster in this folder, as ``torchmar.server`` runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torchmar.cluster.fronts import SHARED
from torchmar.cluster.pool import ClusterPools
from torchmar.cluster.session import Session
from torchmar.server.__main__ import main as run_server
from torchmar.server.app import ServerApp
from torchmar.server.config.settings import Settings


def _create(settings: Settings, folder: Path) -> ServerApp:
    session = Session(settings.ray_address, settings.ray_group)
    standing = session.join()
    if standing.revision or standing.leader != session.front:
        # It serves what the other fronts do, and not what its configuration names.
        settings = replace(settings, model_snapshot=(SHARED,), watch=None, model_base_paths=(), routes={})
    gpus = max((int(node.gpus) for node in session.nodes().values()), default=0)
    settings = replace(settings, number_of_gpu=gpus)  # the nodes', not the front's own
    return ServerApp(settings, folder, ClusterPools(session, settings, folder / "contents", standing))


def main() -> None:
    """Run the front that the command line describes."""
    run_server(_create, "torchmar.cluster")


if __name__ == "__main__":
    main()
