"""The configuration of a version, from its registration, its ``model-config.yaml`` and the server's configuration.

The order of precedence is TorchServe's, as observed. For batches: the registration, the archive's file, the
configuration's ``models``. For timeouts: the file, ``models``, the registration. For workers: the file, if it has
both ``minWorkers`` and ``maxWorkers``; otherwise the registration.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchmar import handler_names, manifest
from torchmar.server.api_error import ApiError
from torchmar.server.config.settings import Settings
from torchmar.server.models.archive_cache import CachedArchive
from torchmar.server.models.model_config import ModelConfig, check_supported, positive, whole
from torchmar.server.models.registration import RUNTIMES, Registration, check_workers
from torchmar.server.workers.pool_options import PoolOptions
from torchmar.worker.process import forking, loading

_BATCH_SIZE, _MAX_BATCH_DELAY = 1, 100
_RETRY_SECONDS = 300
_READ_BY_OUR_HANDLERS = ("json", "kserve", "kservev2")


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """The configuration of a version.

    Attributes:
        pool: configuration of its queue and its workers.
        runtime: runtime for descriptions.
        min_workers: least number of workers at first.
        max_workers: largest number of workers at first.
        client_timeout: seconds that a request may wait for a worker; 0: as long as its client waits.
        device_type: ``cpu`` or ``gpu``.
        device_ids: GPUs in the archive's file; empty: none, or none that exists.
    """

    pool: PoolOptions
    runtime: str
    min_workers: int
    max_workers: int
    client_timeout: float
    device_type: str
    device_ids: tuple[int, ...]


def resolve(
    registration: Registration, archive: CachedArchive, settings: Settings, *, by_server: bool = False
) -> ServingConfig:
    """Return the configuration of a version.

    Args:
        registration: its registration.
        archive: its archive.
        settings: the server's configuration.
        by_server: whether the server registers it for its configuration; ``models`` then has the number of its workers.

    Raises:
        ApiError: 400; the archive needs a feature that this server does not have, or its name contains a ``/``.
    """
    name, version = _title(registration, archive)
    runtime = registration.runtime or archive.manifest.runtime
    if runtime not in RUNTIMES:
        raise ApiError(400, "InvalidModelException", "Runtime is not defined or invalid.")
    check_supported(archive.config, runtime, registration.shown_url)
    model, handler = archive.manifest.model, _handler(registration, archive, settings)
    config, state = ModelConfig(archive.config, name, version), registration.state
    server_config = settings.models.get(name, {}).get(version, {})
    on_gpu, device_ids = config.devices(settings.number_of_gpu)
    min_workers, max_workers = _workers(config, registration, server_config if by_server else {}, settings, by_server)
    stages = config.stages(registration.shown_url)
    fork, fork_reason = forking.mode(handler, model_file=bool(model.model_file), allowed=config.fork())
    if inference := stages.get("inference", 0):
        min_workers, max_workers = inference, max(inference, whole(config.get("maxWorkers")) or 0)
    return ServingConfig(
        pool=PoolOptions(
            name=name,
            version=version,
            handler=handler,
            folder=str(archive.folder),
            own_folder=archive.size is not None,
            envelope=_envelope(settings.service_envelope or model.envelope or "", handler),
            batch_size=_first(
                positive(state, "batchSize"),
                _at_least(1, registration.batch_size),
                config.positive("batchSize"),
                positive(server_config, "batchSize"),
                _BATCH_SIZE,
            ),
            max_batch_delay=_first(
                positive(state, "maxBatchDelay"),
                _at_least(0, registration.max_batch_delay),
                config.positive("maxBatchDelay"),
                positive(server_config, "maxBatchDelay"),
                _MAX_BATCH_DELAY,
            ),
            response_timeout=_first(
                positive(state, "responseTimeout"),
                config.positive("responseTimeout"),
                positive(server_config, "responseTimeout"),
                registration.response_timeout,
                settings.default_response_timeout,
            ),
            startup_timeout=_first(
                positive(state, "startupTimeout"),
                config.positive("startupTimeout"),
                positive(server_config, "startupTimeout"),
                registration.startup_timeout,
                settings.default_startup_timeout,
            ),
            queue_size=_first(config.positive("jobQueueSize"), settings.job_queue_size),
            devices=(device_ids or tuple(range(settings.number_of_gpu))) if on_gpu else (),
            retry_seconds=_first(config.positive("maxRetryTimeoutInSec"), _RETRY_SECONDS),
            job_tickets=archive.config.get("useJobTicket") is True,
            requirements=str(archive.requirements or ""),
            metrics_config=str(settings.metrics_config or ""),
            limit_max_image_pixels=settings.limit_max_image_pixels,
            memory_limit=0 if on_gpu else settings.worker_memory,
            poll=settings.worker_poll_us,
            preprocess_workers=stages.get("preprocess", 0),
            postprocess_workers=stages.get("postprocess", 0),
            fork=fork,
            fork_reason=fork_reason,
            replica=config.replica(registration.shown_url),
        ),
        runtime=runtime,
        min_workers=min_workers,
        max_workers=max_workers,
        client_timeout=(config.positive("clientTimeoutInMills") or 0) / 1000,
        device_type="gpu" if on_gpu else "cpu",
        device_ids=device_ids,
    )


def _title(registration: Registration, archive: CachedArchive) -> tuple[str, str]:
    """Return the name and the version."""
    name = registration.model_name or archive.name or registration.fallback_name
    version = registration.version or archive.version
    if not name:
        raise ApiError(400, "InvalidModelException", "Model name is not defined.")
    for part, value in (("name", name), ("version", version)):
        if "/" in value or not value.isprintable():
            message = f"{registration.shown_url}: the model's {part} {value!r} cannot stand in the path of a request"
            raise ApiError(400, "InvalidModelException", message)
    return name, version


def _handler(registration: Registration, archive: CachedArchive, settings: Settings) -> str:
    handler = registration.handler or archive.manifest.model.handler or settings.default_service_handler
    if not handler:
        reason = "its manifest names no handler"
        if not (archive.folder / manifest.PATH).is_file():
            reason = f"it is a folder without {manifest.PATH}"
        hint = "name one with handler=, or with default_service_handler in config.properties"
        message = f"{registration.shown_url}: {reason}; {hint}"
        raise ApiError(400, "InvalidModelException", message)
    return handler


def _workers(
    config: ModelConfig,
    registration: Registration,
    server_config: Mapping[str, Any],
    settings: Settings,
    by_server: bool,
) -> tuple[int, int]:
    """Return the least and the largest number of workers of a version."""
    low, high = whole(config.get("minWorkers")), whole(config.get("maxWorkers"))
    if low is not None and high is not None and high >= max(1, low):
        low = max(1, low)  # as in TorchServe, which treats 0 as 1 here
    elif by_server and (configured := whole(server_config.get("minWorkers"))) is not None:
        low, high = configured, max(configured, whole(server_config.get("maxWorkers")) or 0)
    else:
        count = registration.initial_workers
        if count is None:
            count = settings.default_workers_per_model
            if by_server and not count:
                count = settings.number_of_gpu or os.cpu_count() or 1
        low = high = max(0, count)
    check_workers("minWorkers", low)
    if (restored := whole(registration.state.get("minWorkers"))) is not None:
        low, high = max(0, restored), max(0, restored, whole(registration.state.get("maxWorkers")) or 0)
        check_workers("minWorkers", low)
    return low, high


def _envelope(envelope: str, handler: str) -> str:
    """Return the envelope of a handler; torchmar's handlers need none for protocols that they read completely.

    In handlers that run packages of other tools, the package reads the bodies.
    """
    is_ours = handler.partition(".")[0] == handler_names.CARRIED_PACKAGE and handler not in loading.PACKAGE_HANDLERS
    return "" if is_ours and envelope in _READ_BY_OUR_HANDLERS else envelope


def _at_least(least: int, value: int | None) -> int | None:
    return None if value is None else max(least, value)


def _first(*values: float | None) -> Any:
    return next(value for value in values if value is not None)
