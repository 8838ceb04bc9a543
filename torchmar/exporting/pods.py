"""Parts of pods that run a server: probes, rights, writable folders, resources.

The rights are those of Kubernetes' Pod Security Standard "restricted":
https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchmar.exporting.image import UID

RUN_FOLDER = "/run/torchmar"
READY, LIVE = "/v2/health/ready", "/v2/health/live"
#: Time for load balancers to stop sending requests to a pod that is being removed, before its server stops.
PRE_STOP_SECONDS = 5
#: Time until a pod is killed: the server answers open requests for 30 seconds of it (`torchmar.server.app.GRACE`).
GRACE_SECONDS = PRE_STOP_SECONDS + 30 + 10

_GPU = "nvidia.com/gpu"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of one server.

    Attributes:
        cpu: cores, as a quantity of Kubernetes.
        memory: bytes, as a quantity of Kubernetes.
        gpus: the number of GPUs of NVIDIA.
    """

    cpu: str = "1"
    memory: str = "2Gi"
    gpus: int = 0

    def manifest(self) -> dict[str, Any]:
        """Return requests and limits.

        Memory and GPUs have limits, because a pod cannot give them back. CPU has none: a limit stops a server for parts
        of each tenth of a second, which adds latency while cores of the machine are idle.
        """
        gpus = {_GPU: str(self.gpus)} if self.gpus else {}
        return {
            "requests": {"cpu": self.cpu, "memory": self.memory, **gpus},
            "limits": {"memory": self.memory, **gpus},
        }


def container_security() -> dict[str, Any]:
    """Return the rights of a container: no root, no capabilities, no writable files except in its volumes."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod_security() -> dict[str, Any]:
    """Return the rights of a pod: the user of torchmar's images, who can read the volumes."""
    return {"runAsNonRoot": True, "runAsUser": UID, "fsGroup": UID, "seccompProfile": {"type": "RuntimeDefault"}}


def environment(gpus: int) -> list[dict[str, str]]:
    """Return the variables of a server; images of ``torchmar export docker`` have both, other images may not."""
    variables = {"TORCHMAR_RUN_FOLDER": RUN_FOLDER}
    if gpus:
        # GPUs are counted with nvidia-smi, one of the driver's utilities.
        variables["NVIDIA_DRIVER_CAPABILITIES"] = "compute,utility"
    return [{"name": name, "value": value} for name, value in variables.items()]


def writable_volumes() -> list[dict[str, Any]]:
    """Return the volumes that a server writes to: its run folder, with extracted archives, and temporary files."""
    return [{"name": "run", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]


def writable_mounts() -> list[dict[str, Any]]:
    """Return the mounts of `writable_volumes`."""
    return [{"name": "run", "mountPath": RUN_FOLDER}, {"name": "tmp", "mountPath": "/tmp"}]


def lifecycle() -> dict[str, Any]:
    """Return the delay of a server's end, which is needed because load balancers notice the end of a pod late."""
    return {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}}


def probe(path: str, port: int | str, **numbers: int) -> dict[str, Any]:
    """Return a probe over HTTP; it needs no token."""
    return {"httpGet": {"path": path, "port": port}, **numbers}


def labels(name: str) -> Mapping[str, str]:
    """Return the labels by which the objects of one server are selected."""
    return {"app.kubernetes.io/name": "torchmar", "app.kubernetes.io/instance": name}
