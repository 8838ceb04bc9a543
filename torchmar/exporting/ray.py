"""The folder that Ray Serve runs: config.yaml, deployment.py, code/requirements.txt and archives.

It has the layout of AWS's images for Ray Serve, which read it at ``/opt/ml/model``. ``deployment.py`` is
`torchmar.exporting.ray_deployment`, unchanged.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from torchmar.archive import Archive
from torchmar.errors import TorchmarError
from torchmar.server.models.model_config import UNSUPPORTED_KEYS

APPLICATION = "torchmar"
MODELS = "models"  # the folder of the archives
_INGRESS = "Ingress"  # the deployment that receives requests if there are several archives
_QUEUE_SIZE, _BATCH_DELAY_MS = 100, 100  # TorchServe's defaults
# A method that only the open connection of a worker supports. TorchServe's base handler does not call it.
_STREAMS = re.compile(rb"\bsend_intermediate_predict_response\s*\(")
_HEAD = """\
# Ray Serve runs this folder: PYTHONPATH=. serve run config.yaml
# AWS's images for Ray Serve run it as /opt/ml/model, and SageMaker as model.tar.gz.
# Ray ignores keys that it does not know: torchmar export ray --check config.yaml finds them.
"""


@dataclass(frozen=True, kw_only=True)
class RayModel:
    """One archive as a deployment of Ray Serve.

    Attributes:
        name: name of the model.
        version: version of the model.
        file: the archive's file in the folder `MODELS`.
        batch_size: largest number of requests in a batch.
        batch_delay_ms: longest wait for a full batch in milliseconds.
        queue_size: largest number of waiting requests; further ones get 503.
        min_workers: number of replicas, or the least number.
        max_workers: largest number of replicas.
        envelope: envelope of the handler; empty: none.
        cpus: cores that Ray reserves for a replica.
        gpus: GPUs of a replica, possibly a fraction.
    """

    name: str
    version: str
    file: str
    batch_size: int = 1
    batch_delay_ms: float = _BATCH_DELAY_MS
    queue_size: int = _QUEUE_SIZE
    min_workers: int = 1
    max_workers: int = 1
    envelope: str = ""
    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def deployment(self) -> str:
        """The name of the deployment."""
        return f"{self.name}-{self.version}"

    @property
    def ongoing(self) -> int:
        """The number of requests that a replica has at once: a running batch and the next one. Ray's default is 5."""
        return 2 * self.batch_size


def model(archive: Archive, *, cpus: float = 1.0, gpus: float | None = None) -> RayModel:
    """Return an archive as a deployment.

    Args:
        archive: the archive.
        cpus: number of cores of a replica.
        gpus: number of GPUs of a replica; None: 1 if the archive's configuration requires GPUs.

    Raises:
        TorchmarError: Ray Serve cannot run it as TorchServe does.
    """
    path, manifest, config = archive.path, archive.manifest, archive.config
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise TorchmarError(f"{path} is no zip file", hint="torchmar build writes archives that are")
    if archive.runtime or config.get("useVenv") is True:
        hint = "build it without runtime: and give its packages to Ray's runtime_env"
        raise TorchmarError(
            f"{path} asks for an environment of its own, which a replica of Ray does not have", hint=hint
        )
    if unsupported := [key for key in UNSUPPORTED_KEYS if config.get(key)]:
        raise TorchmarError(f"{path}: its model-config.yaml sets {', '.join(unsupported)}, which Ray Serve does not do")
    for member in archive.members:
        if member.name.endswith(".py") and _STREAMS.search(archive.read(member.name)):
            raise TorchmarError(
                f"{path}: {member.name} sends its answers in parts, which deployment.py does not",
                hint="torchmar serve streams them",
            )
    min_workers = int(archive.number("minWorkers", 1))
    return RayModel(
        name=manifest.name,
        version=manifest.version,
        file=f"{manifest.name}-{manifest.version}.mar",
        batch_size=int(archive.number("batchSize", 1)),
        batch_delay_ms=archive.number("maxBatchDelay", _BATCH_DELAY_MS),
        queue_size=int(archive.number("jobQueueSize", _QUEUE_SIZE)),
        min_workers=min_workers,
        max_workers=max(min_workers, int(archive.number("maxWorkers", min_workers))),
        envelope=manifest.model.envelope or "",
        cpus=cpus,
        gpus=gpus if gpus is not None else float(str(config.get("deviceType", "")).lower() == "gpu"),
    )


def config(models: Sequence[RayModel]) -> str:
    """Return the text of config.yaml; the last version of a model is its default.

    Raises:
        TorchmarError: two archives are the same version of a model.
    """
    names = [ray_model.deployment for ray_model in models]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise TorchmarError(f"two archives are called {repeated}", hint="give one of them")
    deployments = [_deployment(ray_model) for ray_model in models]
    if len(models) > 1:
        ongoing = max(100, *(2 * ray_model.ongoing * ray_model.max_workers for ray_model in models))
        ingress = {"num_replicas": 1, "max_ongoing_requests": ongoing, "ray_actor_options": {"num_cpus": 0.1}}
        deployments.append({"name": _INGRESS, **ingress})
    application = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": "deployment:app",
        "args": {"models": [_arguments(ray_model) for ray_model in models]},
        "deployments": deployments,
    }
    return _HEAD + yaml.safe_dump({"applications": [application]}, sort_keys=False, allow_unicode=True)


def _arguments(model: RayModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "archive": f"{MODELS}/{model.file}",
        "batch_size": model.batch_size,
        "batch_delay_s": model.batch_delay_ms / 1000,
        "envelope": model.envelope,
    }


def _deployment(model: RayModel) -> dict[str, Any]:
    replicas: dict[str, Any] = {"num_replicas": model.min_workers}
    if model.max_workers > model.min_workers:
        limits = {"min_replicas": model.min_workers, "max_replicas": model.max_workers}
        replicas = {"autoscaling_config": {**limits, "target_ongoing_requests": model.batch_size}}
    return {
        "name": model.deployment,
        **replicas,
        "max_ongoing_requests": model.ongoing,
        "max_queued_requests": model.queue_size,
        "ray_actor_options": {"num_cpus": model.cpus, "num_gpus": model.gpus},
    }


def requirements(archives: Sequence[Archive], extras: Sequence[str]) -> str:
    """Return the text of requirements.txt: the packages that archives need in addition to Ray.

    Args:
        archives: archives of the folder; requirements inside them are copied unchanged.
        extras: extras of torchmar with further packages for the archives.
    """
    lines = ["# Beside Ray Serve itself: pip install 'ray[serve]'", "python-multipart"]
    for line in requires("torchmar") or ():
        requirement = Requirement(line)
        marker, requirement.marker = requirement.marker, None
        if requirement.name == "torchmar" or marker is None or "extra" not in str(marker):
            continue
        if any(marker.evaluate({"extra": extra}) for extra in extras):
            lines.append(str(requirement))
    for archive in archives:
        if name := archive.manifest.model.requirements_file:
            lines += [
                f"# {archive.manifest.name} {archive.manifest.version}",
                archive.read(name).decode("utf-8", "replace").strip(),
            ]
    return "\n".join(dict.fromkeys(lines)) + "\n"


def deployment() -> str:
    """Return the text of deployment.py."""
    return Path(__file__).with_name("ray_deployment.py").read_text(encoding="utf-8")
