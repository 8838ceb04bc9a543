"""The documents of the console's API for another server; values that the server does not report are empty or null."""

from __future__ import annotations

import os
import re
import time
from typing import Any

import torchmar
from torchmar.connection import Endpoint
from torchmar.engines.state import VersionState
from torchmar.management import WorkerState
from torchmar.remote_console import load
from torchmar.remote_console.reader import Model, Snapshot, Target
from torchmar.remote_console.store import Facts, Store
from torchmar.server.models import archive_urls
from torchmar.server.tokens import Right

ENGINE = "TorchServe"
LARGEST_UPLOAD = 1 << 30  # largest request body, such as an archive to check
_GPU = re.compile(r"gpuId::(\d+)")
_LOAD = ("requests", "failed", "mean_ms", "queue_ms")
_OF_ARCHIVE = ("digest", "size", "modified", "handler", "description", "samples", "archives")


def server(target: Target, snapshot: Snapshot, right: Right) -> dict[str, Any]:
    """Return the document of the server.

    Args:
        target: the server.
        snapshot: the last snapshot of the server.
        right: rights of the client.
    """
    endpoint = target.endpoint
    return {
        "torchmar": torchmar.__version__,
        "engine": ENGINE,
        "not_reported": _not_reported(target, snapshot),
        "pid": os.getpid(),
        "started": None,
        "now": round(time.time(), 3),
        "health": snapshot.health,
        "loading": False,
        "not_loaded": [],
        "warnings": [f"The load is not shown. {snapshot.without_metrics}"] if snapshot.metrics is None else [],
        "addresses": {"inference": endpoint.inference, "management": endpoint.management},
        "grpc": {
            "inference": endpoint.grpc_inference.partition("//")[2],
            "management": endpoint.grpc_management.partition("//")[2],
        },
        "model_store": str(target.model_store or ""),
        "tokens": _has_tokens(endpoint),
        "right": right,
        "may_register": right == "management",
        "may_upload": False,
        "largest_upload": LARGEST_UPLOAD,
        "machine": None,
    }


def model(name: str, described: Model, store: Store) -> dict[str, Any]:
    """Return the document of a model with all of its versions."""
    return {
        "name": name,
        "default": described.default,
        "labels": {},
        "versions": [_version(state, store.facts(state.model.url)) for state in described.versions],
    }


def signature(described: Model) -> object:
    """Return a value that changes with the document of `model`, except its memory and its waiting requests."""
    return described.default, tuple(
        (
            state.model.version,
            state.model.url,
            state.model.min_workers,
            state.model.max_workers,
            tuple((worker.id, worker.status, worker.pid) for worker in state.model.workers),
            state.failure,
        )
        for state in described.versions
    )


def _version(state: VersionState, facts: Facts) -> dict[str, Any]:
    of = state.model
    queue = of.job_queue
    return {
        "version": of.version,
        "url": archive_urls.without_secrets(of.url),
        "digest": facts.digest,
        "size": facts.size,
        "modified": facts.modified,
        "handler": facts.handler,
        "description": facts.description,
        "state": state.state,
        "ready": of.ready,
        "min_workers": of.min_workers,
        "max_workers": of.max_workers,
        "pending": queue.pending_requests,
        "device": "gpu" if of.device_type == "gpu" else "cpu",
        "batch_size": of.batch_size,
        "max_batch_delay_ms": of.max_batch_delay,
        "response_timeout_s": of.response_timeout,
        "queue_size": queue.pending_requests + queue.remaining_capacity,
        "failure": state.failure.traceback if state.failure else "",
        "workers": [
            *(_worker(worker, "") for worker in of.workers),
            *(_worker(worker, stage) for stage, workers in of.stages.items() for worker in workers),
        ],
    }


def _worker(worker: WorkerState, stage: str) -> dict[str, Any]:
    gpu = _GPU.search(worker.gpu_usage) if worker.gpu else None
    return {
        "id": worker.id,
        "state": worker.status,
        "pid": worker.pid,
        "gpu": int(gpu[1]) if gpu else None,
        "memory": worker.memory_usage,
        "started": worker.start_time.timestamp() if worker.start_time else 0.0,
        "stage": stage,
    }


def _not_reported(target: Target, snapshot: Snapshot) -> list[str]:
    """Return the keys of the API that have no values, and the pages without content."""
    missing = ["steps", "machine", "answers", "rollout", *load.NOT_REPORTED]
    if snapshot.metrics is None:
        missing += _LOAD
    if target.folder is None:
        missing += ["logs", "failure"]
    if target.model_store is None:
        missing += _OF_ARCHIVE
    return missing


def _has_tokens(endpoint: Endpoint) -> bool:
    return endpoint.key_file is not None or bool(endpoint.tokens)
