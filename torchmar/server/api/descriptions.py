"""Descriptions of versions and lists of models in the management API, with TorchServe's keys and their order."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from torchmar import gpus
from torchmar.server.models.registry import Model, Version
from torchmar.server.workers.pool_options import WorkerInfo

PAGE = 100  # largest number of models on a page
_NVIDIA_SMI_SECONDS = 5.0
# Fields of nvidia-smi, with the headers of their columns in TorchServe's answers.
_GPU_COLUMNS = {
    "utilization.gpu": "utilization.gpu [%]",
    "utilization.memory": "utilization.memory [%]",
    "memory.used": "memory.used [MiB]",
}


def version(described: Version, usage: dict[int, str] | None = None) -> dict[str, Any]:
    """Return the description of a version.

    Two keys are not TorchServe's: ``failure``, the traceback of the last worker that did not load, which TorchServe
    only logs; and ``stages``, the workers of the other stages than the model.

    Args:
        described: the version.
        usage: usage of GPUs, from `gpu_usage`.
    """
    serving, pool = described.serving, described.pool
    options = serving.pool
    pending = pool.pending
    document: dict[str, Any] = {
        "modelName": described.name,
        "modelVersion": described.version,
        "modelUrl": described.shown_url,
        "runtime": serving.runtime,
        "minWorkers": pool.min_workers,
        "maxWorkers": pool.max_workers,
        "batchSize": options.batch_size,
        "maxBatchDelay": _number(options.max_batch_delay),
        "responseTimeout": _number(options.response_timeout),
        "startupTimeout": _number(options.startup_timeout),
        "maxRetryTimeoutInSec": _number(options.retry_seconds),
        "clientTimeoutInMills": _number(serving.client_timeout * 1000),
        "parallelType": "",
        "parallelLevel": 0,
        "deviceType": serving.device_type,
        **({"deviceIds": list(serving.device_ids)} if serving.device_ids else {}),
        "continuousBatching": False,
        "useJobTicket": options.job_tickets,
        "useVenv": False,
        "stateful": False,
        "sequenceMaxIdleMSec": 0,
        "sequenceTimeoutMSec": 0,
        "maxNumSequence": 0,
        "maxSequenceJobQueueSize": 0,
        "loadedAtStartup": described.loaded_at_startup,
        "workers": [_worker(worker, usage or {}) for worker in pool.workers()],
        "jobQueueStatus": {
            "remainingCapacity": max(0, options.queue_size - pending),
            "pendingRequests": pending,
        },
    }
    if stages := pool.stage_workers():
        document["stages"] = {name: [_worker(worker, {}) for worker in workers] for name, workers in stages.items()}
    if pool.failure:
        document["failure"] = pool.failure
    return document


def page(models: Iterable[Model], limit: int, token: int) -> dict[str, Any]:
    """Return a page of the list of models, by name, each with the archive of its default version.

    Args:
        models: all of them.
        limit: number of models on the page; below 0 or above 100 counts as 100.
        token: number of models on the pages before.
    """
    if not 0 <= limit <= PAGE:
        limit = PAGE
    ordered = sorted(models, key=lambda model: model.name)
    start = max(0, token)
    # As in TorchServe: if a page ends with the list, there is still a token, and the next page is empty.
    following = {"nextPageToken": str(start + limit)} if start + limit <= len(ordered) else {}
    listed = [
        {"modelName": model.name, "modelUrl": model.versions[model.default].shown_url}
        for model in ordered[start : start + limit]
    ]
    return {**following, "models": listed}


def gpu_usage() -> dict[int, str]:
    """Return the usage of each GPU in TorchServe's format; empty if nvidia-smi reports none.

    Blocking: it waits for the driver.
    """
    try:
        rows = gpus.query(*_GPU_COLUMNS, units=True, timeout_s=_NVIDIA_SMI_SECONDS)
    except gpus.NvidiaSmiError:
        return {}
    usage = {}
    for index, values in rows.items():
        columns = " ".join(f"{name}::{value}" for name, value in zip(_GPU_COLUMNS.values(), values, strict=True))
        usage[index] = f"gpuId::{index} {columns}"
    return usage


def _worker(worker: WorkerInfo, usage: dict[int, str]) -> dict[str, Any]:
    started = datetime.fromtimestamp(worker.started, timezone.utc)
    return {
        "id": worker.id,
        "startTime": started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "status": worker.state,
        "memoryUsage": worker.memory,
        "pid": worker.pid or -1,
        "gpu": worker.gpu is not None,
        # The GPUs of other machines are unknown here.
        "gpuUsage": "N/A" if worker.gpu is None or worker.node else usage.get(worker.gpu, "N/A"),
        **({"node": worker.node, "device": worker.device} if worker.node else {}),
        **({"failure": worker.failure} if worker.failure else {}),
    }


def _number(value: float) -> float:
    """Return a whole number as an integer, as in TorchServe's documents."""
    return int(value) if value == int(value) else value
