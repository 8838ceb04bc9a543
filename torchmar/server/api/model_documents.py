"""Descriptions of servers and models in the Open Inference Protocol and Triton's extensions of it.

https://github.com/kserve/open-inference-protocol and
https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torchmar
from torchmar.server.models.registry import Registry, Version
from torchmar.server.telemetry.metrics import Metrics
from torchmar.worker.process.messages import TensorInfo

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "statistics")
PLATFORM = "pytorch"


def server() -> dict[str, Any]:
    """Return the server's name, version and extensions."""
    return {"name": "torchmar", "version": torchmar.__version__, "extensions": list(EXTENSIONS)}


def metadata(registry: Registry, version: Version) -> dict[str, Any]:
    """Return a model's versions, inputs and outputs; the last two are empty if its handler does not describe them."""
    described = version.pool.description
    return {
        "name": version.name,
        "versions": list(registry.models[version.name].versions),
        "platform": PLATFORM,
        "inputs": described.get("inputs", []),
        "outputs": described.get("outputs", []),
    }


def config(version: Version) -> dict[str, Any]:
    """Return the configuration of a version, in the keys of Triton's model configuration."""
    described, pool, options = version.pool.description, version.pool, version.serving.pool
    gpus = list(options.devices)
    group = {"name": version.name, "count": pool.min_workers, "gpus": gpus, "kind": "KIND_GPU" if gpus else "KIND_CPU"}
    delay = round(options.max_batch_delay * 1000)
    return {
        "name": version.name,
        "platform": PLATFORM,
        "backend": "torchmar",
        "max_batch_size": described.get("max_instances", 0),
        "input": [_configured(tensor) for tensor in described.get("inputs", [])],
        "output": [_configured(tensor) for tensor in described.get("outputs", [])],
        "instance_group": [group],
        "dynamic_batching": {
            "preferred_batch_size": [options.batch_size],
            "max_queue_delay_microseconds": delay,
        },
    }


def statistics(registry: Registry, metrics: Metrics, name: str = "", version: str = "") -> dict[str, Any]:
    """Return the statistics of a version, of all versions of a model, or of all models.

    Raises:
        ApiError: 404, there is no such model or version.
    """
    if name:
        version_found = registry.find(name, version or None)
        versions = [version_found] if version else list(registry.models[name].versions.values())
    else:
        versions = list(_versions(registry))
    documents = [
        {"name": entry.name, "version": entry.version, **metrics.statistics(entry.name, entry.version).document()}
        for entry in versions
    ]
    return {"model_stats": documents}


def index(registry: Registry, *, ready: bool = False) -> list[dict[str, str]]:
    """Return the name, version and state of each version; with ``ready``, only of those that accept requests.

    It includes models of the configuration that are not loaded yet, or could not be loaded.
    """
    documents = []
    for version in _versions(registry):
        state, reason = _state(version)
        if state == "READY" or not ready:
            documents.append({"name": version.name, "version": version.version, "state": state, "reason": reason})
    if not ready:
        startup = registry.startup
        absent = [(model.title, model.version, "LOADING", "") for model in startup.pending]
        absent += [
            (name, failure.model.version, "UNAVAILABLE", failure.message) for name, failure in startup.failures.items()
        ]
        documents += [dict(zip(("name", "version", "state", "reason"), values, strict=True)) for values in absent]
    return documents


def _state(version: Version) -> tuple[str, str]:
    pool = version.pool
    if pool.ready:
        return "READY", ""
    if pool.failure:
        return "UNAVAILABLE", pool.failure.splitlines()[-1].strip()
    return ("LOADING", "") if pool.min_workers else ("UNAVAILABLE", "it has no workers")


def _versions(registry: Registry) -> Iterator[Version]:
    for model in registry.models.values():
        yield from model.versions.values()


def _configured(tensor: TensorInfo) -> dict[str, Any]:
    datatype = "STRING" if tensor["datatype"] == "BYTES" else tensor["datatype"]
    return {"name": tensor["name"], "data_type": f"TYPE_{datatype}", "dims": tensor["shape"][1:]}
