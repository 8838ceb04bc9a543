"""What a version is served with: its registration, ``model-config.yaml`` and the server's configuration made one.

What goes before what is TorchServe's, seen by running it. For batches: the registration, the archive's file, the
configuration's ``models``. For timeouts: the file, ``models``, the registration. For workers: the file, if it has
both ``minWorkers`` and ``maxWorkers``; then the registration.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchmar import manifest
from torchmar.recipe import Stages, TorchmarConfig, are_stages
from torchmar.server.api_error import ApiError
from torchmar.server.config.settings import Settings
from torchmar.server.models.archive_cache import CachedArchive
from torchmar.server.telemetry import logs
from torchmar.server.workers import preprocess_pool
from torchmar.server.workers.pool import PoolOptions
from torchmar.worker.process import forking

RUNTIMES = ("python", "python3", "lsp")
MOST_WORKERS = 1024  # of one version; more is a typing error, and no machine survives it
_BATCH_SIZE, _MAX_BATCH_DELAY = 1, 100
_RETRY_SECONDS = 300
# Keys that change how requests reach a handler. One that is ignored would mean wrong answers, not slow ones.
_NOT_DONE = (
    "asyncCommunication",
    "continuousBatching",
    "parallelLevel",
    "parallelType",
    "sequenceBatching",
    "sequenceMaxIdleMSec",
    "torchrun",
    "useVenv",
)


@dataclass(frozen=True)
class Registration:
    """The parameters of a registration; None for those not given.

    Attributes:
        url: a file name in the model store, or a URL that is allowed.
        model_name: in place of the archive's.
        handler: in place of the archive's.
        runtime: in place of the archive's: ``python`` or ``python3``, which are the same here.
        batch_size: requests that a handler is given at once; less than 1 is 1.
        max_batch_delay: milliseconds; less than 0 is 0.
        response_timeout: seconds.
        startup_timeout: seconds; 0: no limit.
        initial_workers: zero or less is none.
        synchronous: whether the answer is to come when the workers do.
        fallback_name: where neither ``model_name`` nor the archive has one.
        ignored_checks: codes of checks, or beginnings of codes, that do not keep the archive from being served.
        state: what a snapshot says that it is served with, under TorchServe's keys; goes before all else.
    """

    url: str
    model_name: str = ""
    handler: str = ""
    runtime: str | None = None
    batch_size: int | None = None
    max_batch_delay: int | None = None
    response_timeout: int | None = None
    startup_timeout: int | None = None
    initial_workers: int | None = None
    synchronous: bool = True
    fallback_name: str = ""
    ignored_checks: tuple[str, ...] = ()
    state: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what no server could do.

        Raises:
            ApiError: 400, or 404 for an empty URL, as TorchServe.
        """
        if not self.url:
            raise ApiError(404, "ModelNotFoundException", "empty url")
        if self.runtime is not None and self.runtime not in RUNTIMES:
            raise ApiError(400, "BadRequestException", f"Invalid RuntimeType value: {self.runtime}")
        # Under TorchServe, no request is ever answered with these; batches of less than one request are of one there.
        for name, least in (("response_timeout", 1), ("startup_timeout", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ApiError(
                    400, "BadRequestException", f"Parameter {name} is {value}, and must be at least {least}."
                )
        check_workers("initial_workers", self.initial_workers or 0)


@dataclass(frozen=True)
class ServingConfig:
    """What a version is served with.

    Attributes:
        pool: for its queue and its workers.
        runtime: as it is described.
        min_workers: to start with.
        max_workers: to start with.
        client_timeout: seconds that a request may wait for a worker; 0: as long as its client does.
        device_type: ``cpu`` or ``gpu``.
        device_ids: the GPUs that the archive's file names; empty: it names none, or none that is there.
    """

    pool: PoolOptions
    runtime: str
    min_workers: int
    max_workers: int
    client_timeout: float
    device_type: str
    device_ids: tuple[int, ...]


def resolve(asked: Registration, source: CachedArchive, settings: Settings, *, at_start: bool = False) -> ServingConfig:
    """Return what a version is served with.

    Args:
        asked: the registration.
        source: the archive.
        settings: the server's configuration.
        at_start: whether the server registers it by itself; ``models`` tells the workers then.

    Raises:
        ApiError: 400; the archive asks for what this server does not do, or its name cannot be asked for.
    """
    name = asked.model_name or source.name or asked.fallback_name
    if not name:
        raise ApiError(400, "InvalidModelException", "Model name is not defined.")
    for what, value in (("name", name), ("version", source.version)):
        if "/" in value or not value.isprintable():
            message = f"{asked.url}: the model's {what} {value!r} cannot stand in the path of a request"
            raise ApiError(400, "InvalidModelException", message)
    model = source.manifest.model
    runtime = asked.runtime or source.manifest.runtime
    if runtime not in RUNTIMES:
        raise ApiError(400, "InvalidModelException", "Runtime is not defined or invalid.")
    _refuse_what_is_not_done(source.config, runtime, asked.url)
    handler = asked.handler or model.handler or settings.default_service_handler
    if not handler:
        lack = "its manifest names no handler"
        if not (source.folder / manifest.PATH).is_file():
            lack = f"it is a folder without {manifest.PATH}"
        message = f"{asked.url}: {lack}; name one with handler=, or with default_service_handler in config.properties"
        raise ApiError(400, "InvalidModelException", message)
    config = _Config(source.config, name, source.version)
    ours = settings.models.get(name, {}).get(source.version, {})
    gpus, ids = _devices(config, settings.number_of_gpu)
    low, high = _workers(config, asked, ours if at_start else {}, settings, at_start)
    state = asked.state
    if (restored := _whole(state.get("minWorkers"))) is not None:
        low, high = max(0, restored), max(0, restored, _whole(state.get("maxWorkers")) or 0)
        check_workers("minWorkers", low)
    preprocess, inference = _stages(config, asked.url)
    how, why = forking.mode(handler, model_file=bool(model.model_file), allowed=_fork(config))
    if inference:
        low, high = inference, max(inference, _whole(config.get("maxWorkers")) or 0)
    return ServingConfig(
        PoolOptions(
            name,
            source.version,
            handler,
            str(source.folder),
            envelope=settings.service_envelope or model.envelope or "",
            batch_size=_first(
                _positive(state, "batchSize"),
                _at_least(1, asked.batch_size),
                config.positive("batchSize"),
                _positive(ours, "batchSize"),
                _BATCH_SIZE,
            ),
            max_batch_delay=_first(
                _positive(state, "maxBatchDelay"),
                _at_least(0, asked.max_batch_delay),
                config.positive("maxBatchDelay"),
                _positive(ours, "maxBatchDelay"),
                _MAX_BATCH_DELAY,
            ),
            response_timeout=_first(
                _positive(state, "responseTimeout"),
                config.positive("responseTimeout"),
                _positive(ours, "responseTimeout"),
                asked.response_timeout,
                settings.default_response_timeout,
            ),
            startup_timeout=_first(
                _positive(state, "startupTimeout"),
                config.positive("startupTimeout"),
                _positive(ours, "startupTimeout"),
                asked.startup_timeout,
                settings.default_startup_timeout,
            ),
            queue_size=_first(config.positive("jobQueueSize"), settings.job_queue_size),
            devices=(ids or tuple(range(settings.number_of_gpu))) if gpus else (),
            retry_seconds=_first(config.positive("maxRetryTimeoutInSec"), _RETRY_SECONDS),
            job_tickets=source.config.get("useJobTicket") is True,
            requirements=str(source.requirements or ""),
            metrics_config=str(settings.metrics_config or ""),
            limit_max_image_pixels=settings.limit_max_image_pixels,
            memory_limit=0 if gpus else settings.worker_memory,
            poll=settings.worker_poll,
            preprocess_workers=preprocess,
            fork=how,
            fork_reason=why,
        ),
        runtime,
        low,
        high,
        (config.positive("clientTimeoutInMills") or 0) / 1000,
        "gpu" if gpus else "cpu",
        ids,
    )


def check_workers(parameter: str, count: int) -> None:
    """Refuse more workers than any machine has room for."""
    if count > MOST_WORKERS:
        message = f"Parameter {parameter} is {count}; this server starts at most {MOST_WORKERS} workers of a version."
        raise ApiError(400, "BadRequestException", message)


class _Config:
    """The archive's file; what is of a wrong type is ignored as by TorchServe, and logged."""

    def __init__(self, values: Mapping[str, Any], name: str, version: str) -> None:
        self._values, self._title = values, (name, version)

    def positive(self, key: str) -> int | None:
        if key not in self._values:
            return None
        value = _positive(self._values, key)
        if value is None:
            self._say(key, "should be a whole number above zero")
        return value

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def ignore(self, key: str, why: str) -> None:
        self._say(key, why)

    def _say(self, key: str, why: str) -> None:
        name, version = self._title
        about = {"model": name, "version": version}
        arguments = (name, version, key, self._values[key], why)
        logs.SERVER.warning("%s %s: model-config.yaml: %s=%r is ignored: %s", *arguments, extra=about)


def _workers(
    config: _Config, asked: Registration, ours: Mapping[str, Any], settings: Settings, at_start: bool
) -> tuple[int, int]:
    low, high = _whole(config.get("minWorkers")), _whole(config.get("maxWorkers"))
    if low is not None and high is not None and high >= max(1, low):
        low = max(1, low)  # as TorchServe, which takes 0 for 1 here
    elif at_start and (named := _whole(ours.get("minWorkers"))) is not None:
        low, high = named, max(named, _whole(ours.get("maxWorkers")) or 0)
    else:
        count = asked.initial_workers
        if count is None:
            count = settings.default_workers_per_model
            if at_start and not count:
                count = settings.number_of_gpu or os.cpu_count() or 1
        low = high = max(0, count)
    check_workers("minWorkers", low)
    return low, high


def _devices(config: _Config, count: int) -> tuple[bool, tuple[int, ...]]:
    """Return whether workers are on GPUs, and which of these the archive names."""
    kind, ids = config.get("deviceType"), config.get("deviceIds")
    kind = kind.lower() if isinstance(kind, str) else kind
    if kind not in (None, "", "cpu", "gpu"):
        config.ignore("deviceType", "should be cpu or gpu")
    if not count or kind == "cpu":
        return False, ()
    if ids is None:
        return True, ()
    if not isinstance(ids, list) or not ids or any(_whole(one) is None or not 0 <= one < count for one in ids):
        config.ignore("deviceIds", f"should be numbers of GPUs, of which there are {count} (0 to {count - 1})")
        return True, ()
    return True, tuple(ids)


def _stages(config: _Config, url: str) -> tuple[int, int]:
    """Return the workers of the stages preprocess and inference; 0: there are no stages, or as many as without."""
    found = config.get("stages")
    if not are_stages(found):
        return 0, 0
    wrong = [f"there is no stage {name!r}" for name in found if name not in Stages.model_fields]
    wrong += [
        f"{name}: {value!r} is no number of workers from 1 to {MOST_WORKERS}"
        for name, value in found.items()
        if name in Stages.model_fields and not 1 <= (_whole(value) or 0) <= MOST_WORKERS
    ]
    if "preprocess" not in found:
        wrong.append("preprocess is missing")
    if wrong:
        message = f"{url}: its model-config.yaml: stages: {'; '.join(wrong)}"
        raise ApiError(400, "InvalidModelException", f"{message}. Write stages: {{preprocess: 2, inference: 1}}")
    if not preprocess_pool.available():
        config.ignore("stages", "they take memory that processes share as on Linux; workers do all of a request")
        return 0, 0
    return found["preprocess"], found.get("inference", 0)


def _fork(config: _Config) -> bool | None:
    """Return what ``torchmar: {fork: ...}`` says; None: nothing."""
    section = config.get("torchmar")
    if section is None:
        return None
    if not isinstance(section, Mapping):
        config.ignore("torchmar", "should be a section, such as torchmar: {fork: true}")
        return None
    value = section.get("fork")
    if unknown := [str(name) for name in section if name not in TorchmarConfig.model_fields]:
        config.ignore("torchmar", f"there is no key {', '.join(unknown)} in this section; it has fork")
    if value is not None and not isinstance(value, bool):
        config.ignore("torchmar", "fork should be true or false")
        return None
    return value


def _refuse_what_is_not_done(config: Mapping[str, Any], runtime: str, url: str) -> None:
    found = [key for key in _NOT_DONE if config.get(key)]
    if found:
        keys = ", ".join(found)
        message = f"{url}: its model-config.yaml sets {keys}, which this server does not do"
    elif runtime == "lsp":
        message = f"{url}: its runtime is lsp, and this server runs Python"
    else:
        return
    raise ApiError(400, "InvalidModelException", f"{message}; torchmar serve --engine torchserve runs it.")


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _positive(values: Mapping[str, Any], key: str) -> int | None:
    value = _whole(values.get(key))
    return value if value is not None and value > 0 else None


def _at_least(least: int, value: int | None) -> int | None:
    return None if value is None else max(least, value)


def _first(*values: float | None) -> Any:
    return next(value for value in values if value is not None)
