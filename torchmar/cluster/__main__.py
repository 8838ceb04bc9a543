"""``python -m torchmar.cluster -f CONFIG``: run the front of a cluster in this folder, as ``torchmar.server`` runs."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from torchmar.cluster.follower import SHARED
from torchmar.cluster.pools import ClusterPools
from torchmar.cluster.session import Session
from torchmar.server.__main__ import main as run_server
from torchmar.server.app import ServerApp
from torchmar.server.config.settings import Settings
from torchmar.server.config.startup_models import StartupModel


def main() -> None:
    """Run the front that the command line describes."""
    sessions: list[Session] = []

    def create(settings: Settings, folder: Path) -> ServerApp:
        sessions.append(session := Session(settings.ray_address, settings.ray_group))
        return _create(session, settings, folder)

    try:
        run_server(create, "torchmar.cluster")
    except SystemExit as ended:
        if any(session.starts_again for session in sessions):  # it has left the cluster, to join it anew
            os.execv(sys.executable, [sys.executable, "-m", "torchmar.cluster", *sys.argv[1:]])
        if not any(session.head.lost.is_set() for session in sessions):
            raise
        # Do not exit by the interpreter: the exit functions of Ray wait for the head.
        sys.stderr.write(f"{ended.code}\n")
        sys.stderr.flush()
        os._exit(1)


def _create(session: Session, settings: Settings, folder: Path) -> ServerApp:
    standing = session.join()
    former: tuple[StartupModel, ...] = ()  # the models of its last run
    if standing.revision or standing.leader != session.front:
        # It serves the models of the other fronts, not those of its configuration.
        former = settings.model_snapshot or ()
        settings = replace(settings, model_snapshot=(SHARED,), watch=None, model_base_paths=(), routes={})
    gpus = max((int(node.gpus) for node in session.nodes().values()), default=0)
    settings = replace(settings, number_of_gpu=gpus)  # those of the nodes, not those of the front's machine
    return ServerApp(settings, folder, ClusterPools(session, settings, folder / "contents", standing, former))


if __name__ == "__main__":
    main()
