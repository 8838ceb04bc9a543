"""The built-in server as the front of a Ray cluster: its workers are replicas of Ray Serve."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import ClassVar

import torchmar
from torchmar.engines import EngineName
from torchmar.engines.builtin import Builtin
from torchmar.engines.server_records import CLUSTER_MODULE


class Ray(Builtin):
    """The built-in server with replicas of Ray Serve; it runs while the context is open.

    With ``torchmar_ray_address`` in its configuration it joins this cluster, in which this machine is a node; otherwise
    it starts a cluster of this machine, which ends with the server.
    """

    name: ClassVar[EngineName] = "ray"
    needed = (*Builtin.needed, "ray")
    install = "pip install 'torchmar[ray]'"
    start_seconds = 180.0  # on a busy machine, Ray's processes take a minute to start

    @classmethod
    def own_keys(cls, command: str, head: str | None = None) -> dict[str, str]:
        """Return keys with which a server shares no models with other servers of its cluster.

        The group is the same for each run of the command in this folder, so that the command removes what a killed run
        has left.
        """
        folder = hashlib.sha256(f"{socket.gethostname()}:{Path.cwd()}".encode()).hexdigest()[:8]
        return {"torchmar_ray_group": f"{command}-{folder}", **({"torchmar_ray_address": head} if head else {})}

    @property
    def described(self) -> str:
        """The version of torchmar, with the cluster."""
        address = self.properties.get("torchmar_ray_address")
        cluster = f"the cluster at {address}" if address else "a cluster of this machine alone"
        return f"torchmar {torchmar.__version__}, built in, with replicas on {cluster}"

    def _command(self, config: Path, temporary: Path) -> list[str]:
        return [self._python, "-m", CLUSTER_MODULE, "-f", str(config)]

    def _environment(self, temporary: Path) -> dict[str, str]:
        # For Ray's sockets, whose paths must be short; and Ray must not send statistics.
        folder = {"RAY_TMPDIR": str(temporary / "ray")}
        return {**super()._environment(temporary), **folder, "RAY_USAGE_STATS_ENABLED": "0"}
