"""The configuration of a version, merged from its registration, ``model-config.yaml`` and the server's configuration.

The order of precedence is TorchServe's, seen by running it. For batches: the registration, the archive's file, the
configuration's ``models``. For timeouts: the file, ``models``, the registration. For workers: the file, if it has
both ``minWorkers`` and ``maxWorkers``; then the registration.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from pydantic import ValidationError

from torchmar import manifest, recipe
from torchmar.archive import file_digest
from torchmar.recipe import NO_STAGE, Replica, Stages, TorchmarConfig, are_stages
from torchmar.server.api_error import ApiError
from torchmar.server.config.settings import Settings
from torchmar.server.models import archive_urls
from torchmar.server.models.archive_cache import CachedArchive
from torchmar.server.telemetry import logs
from torchmar.server.workers import staged_pool
from torchmar.server.workers.pool_options import PoolOptions
from torchmar.worker.process import forking, loading

RUNTIMES = ("python", "python3", "lsp")
MAX_WORKERS = 1024  # of one version; a larger number is a typing error, and no machine has the memory
_BATCH_SIZE, _MAX_BATCH_DELAY = 1, 100
_RETRY_SECONDS = 300
_READ_BY_OUR_HANDLERS = ("json", "kserve", "kservev2")
# Keys that change the requests of a handler. To ignore one would give wrong responses, not slow ones.
UNSUPPORTED_KEYS = (
    "asyncCommunication",
    "continuousBatching",
    "parallelLevel",
    "parallelType",
    "sequenceBatching",
    "sequenceMaxIdleMSec",
    "torchrun",
)


@dataclass(frozen=True)
class Registration:
    """The parameters of a registration; None for those not given.

    Attributes:
        url: a file name in the model store, or a URL that is allowed; without a digest at its end.
        model_name: in place of the archive's.
        handler: in place of the archive's.
        runtime: in place of the archive's: ``python`` or ``python3``, which are the same here.
        batch_size: the most requests of a batch; less than 1 is 1.
        max_batch_delay: milliseconds; less than 0 is 0.
        response_timeout: seconds.
        startup_timeout: seconds; 0: no limit.
        initial_workers: zero or less is none.
        synchronous: whether to respond when the workers are ready.
        fallback_name: where neither ``model_name`` nor the archive has one.
        ignored_checks: codes of checks, or beginnings of codes, to ignore.
        state: of the version in a snapshot, under TorchServe's keys; precedes all else.
        version: in place of the archive's; empty: the archive's.
        by_operator: whether the server registers it for its configuration: the archive's path need not be in
            ``allowed_urls``, and it has as many workers as at the start.
        digest: the expected SHA-256 of the file, in hexadecimal; empty: any.
    """

    url: str
    _: KW_ONLY
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
    version: str = ""
    by_operator: bool = False
    digest: str = ""

    @property
    def shown_url(self) -> str:
        """The URL as logs and messages have it."""
        return archive_urls.without_secrets(self.url)

    def check(self) -> None:
        """Check the parameters that need no archive.

        Raises:
            ApiError: 400, a value is out of range; 404, the URL is empty, as TorchServe.
        """
        if not self.url:
            raise ApiError(404, "ModelNotFoundException", "empty url")
        if self.runtime is not None and self.runtime not in RUNTIMES:
            raise ApiError(400, "BadRequestException", f"Invalid RuntimeType value: {self.runtime}")
        # With these, TorchServe never responds to a request; a batch size less than 1 is 1 there.
        for name, least in (("response_timeout", 1), ("startup_timeout", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ApiError(
                    400, "BadRequestException", f"Parameter {name} is {value}, and must be at least {least}."
                )
        check_workers("initial_workers", self.initial_workers or 0)


def source(url: str, digest: str = "") -> tuple[str, str]:
    """Return the URL and the hexadecimal digest of a `Registration`.

    Args:
        url: which may end in ``#sha256=HEX``.
        digest: ``sha256:HEX``, or empty.

    Raises:
        ApiError: 400, the digest is not one, or there are two.
    """
    try:
        location, at_its_end = file_digest.split(url)
        expected = file_digest.parse(digest)
    except ValueError as error:
        raise ApiError(400, "BadRequestException", f"Parameter digest: {error}.") from None
    if expected and at_its_end not in ("", expected):
        raise ApiError(400, "BadRequestException", "Parameter digest is another one than that at the end of the URL.")
    return location, expected or at_its_end


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """The configuration of a version.

    Attributes:
        pool: of its queue and its workers.
        runtime: for descriptions.
        min_workers: at first.
        max_workers: at first.
        client_timeout: seconds that a request may wait for a worker; 0: as long as its client does.
        device_type: ``cpu`` or ``gpu``.
        device_ids: the GPUs that the archive's file names; empty: it names none, or none that exists.
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
        by_server: whether the server registers it by itself; then ``models`` has the number of its workers.

    Raises:
        ApiError: 400; the archive needs a feature that this server does not have, or its name has a ``/``.
    """
    name = registration.model_name or archive.name or registration.fallback_name
    version = registration.version or archive.version
    if not name:
        raise ApiError(400, "InvalidModelException", "Model name is not defined.")
    for part, value in (("name", name), ("version", version)):
        if "/" in value or not value.isprintable():
            message = f"{registration.shown_url}: the model's {part} {value!r} cannot stand in the path of a request"
            raise ApiError(400, "InvalidModelException", message)
    model = archive.manifest.model
    runtime = registration.runtime or archive.manifest.runtime
    if runtime not in RUNTIMES:
        raise ApiError(400, "InvalidModelException", "Runtime is not defined or invalid.")
    _check_supported(archive.config, runtime, registration.shown_url)
    handler = registration.handler or model.handler or settings.default_service_handler
    if not handler:
        reason = "its manifest names no handler"
        if not (archive.folder / manifest.PATH).is_file():
            reason = f"it is a folder without {manifest.PATH}"
        hint = "name one with handler=, or with default_service_handler in config.properties"
        message = f"{registration.shown_url}: {reason}; {hint}"
        raise ApiError(400, "InvalidModelException", message)
    config = _ModelConfig(archive.config, name, version)
    server_config = settings.models.get(name, {}).get(version, {})
    on_gpu, device_ids = _devices(config, settings.number_of_gpu)
    min_workers, max_workers = _workers(config, registration, server_config if by_server else {}, settings, by_server)
    state = registration.state
    if (restored := _whole(state.get("minWorkers"))) is not None:
        min_workers, max_workers = max(0, restored), max(0, restored, _whole(state.get("maxWorkers")) or 0)
        check_workers("minWorkers", min_workers)
    stages = _stages(config, registration.shown_url)
    fork, fork_reason = forking.mode(handler, model_file=bool(model.model_file), allowed=_fork(config))
    if inference := stages.get("inference", 0):
        min_workers, max_workers = inference, max(inference, _whole(config.get("maxWorkers")) or 0)
    return ServingConfig(
        pool=PoolOptions(
            name=name,
            version=version,
            handler=handler,
            folder=str(archive.folder),
            own_folder=archive.size is not None,
            envelope=_envelope(settings.service_envelope or model.envelope or "", handler),
            batch_size=_first(
                _positive(state, "batchSize"),
                _at_least(1, registration.batch_size),
                config.positive("batchSize"),
                _positive(server_config, "batchSize"),
                _BATCH_SIZE,
            ),
            max_batch_delay=_first(
                _positive(state, "maxBatchDelay"),
                _at_least(0, registration.max_batch_delay),
                config.positive("maxBatchDelay"),
                _positive(server_config, "maxBatchDelay"),
                _MAX_BATCH_DELAY,
            ),
            response_timeout=_first(
                _positive(state, "responseTimeout"),
                config.positive("responseTimeout"),
                _positive(server_config, "responseTimeout"),
                registration.response_timeout,
                settings.default_response_timeout,
            ),
            startup_timeout=_first(
                _positive(state, "startupTimeout"),
                config.positive("startupTimeout"),
                _positive(server_config, "startupTimeout"),
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
            replica=_replica(config, registration.shown_url),
        ),
        runtime=runtime,
        min_workers=min_workers,
        max_workers=max_workers,
        client_timeout=(config.positive("clientTimeoutInMills") or 0) / 1000,
        device_type="gpu" if on_gpu else "cpu",
        device_ids=device_ids,
    )


def check_workers(parameter: str, count: int) -> None:
    """Raise ApiError (400) for more workers than any machine has room for."""
    if count > MAX_WORKERS:
        message = f"Parameter {parameter} is {count}; this server starts at most {MAX_WORKERS} workers of a version."
        raise ApiError(400, "BadRequestException", message)


class _ModelConfig:
    """The archive's ``model-config.yaml``; values of a wrong type are ignored as by TorchServe, and logged."""

    def __init__(self, values: Mapping[str, Any], name: str, version: str) -> None:
        self._values, self._title = values, (name, version)

    def positive(self, key: str) -> int | None:
        if key not in self._values:
            return None
        value = _positive(self._values, key)
        if value is None:
            self.ignore(key, "should be a whole number above zero")
        return value

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def ignore(self, key: str, reason: str) -> None:
        """Log that a key is ignored."""
        name, version = self._title
        extra = {"model": name, "version": version}
        arguments = (name, version, key, self._values[key], reason)
        logs.SERVER.warning("%s %s: model-config.yaml: %s=%r is ignored: %s", *arguments, extra=extra)


def _workers(
    config: _ModelConfig,
    registration: Registration,
    server_config: Mapping[str, Any],
    settings: Settings,
    by_server: bool,
) -> tuple[int, int]:
    """Return the least and the most workers of a version."""
    low, high = _whole(config.get("minWorkers")), _whole(config.get("maxWorkers"))
    if low is not None and high is not None and high >= max(1, low):
        low = max(1, low)  # as TorchServe, which takes 0 for 1 here
    elif by_server and (configured := _whole(server_config.get("minWorkers"))) is not None:
        low, high = configured, max(configured, _whole(server_config.get("maxWorkers")) or 0)
    else:
        count = registration.initial_workers
        if count is None:
            count = settings.default_workers_per_model
            if by_server and not count:
                count = settings.number_of_gpu or os.cpu_count() or 1
        low = high = max(0, count)
    check_workers("minWorkers", low)
    return low, high


def _envelope(envelope: str, handler: str) -> str:
    """Return the envelope around a handler; torchmar's own need none for protocols that they read with all parts.

    In those that run packages of other tools, the package reads the bodies.
    """
    own = handler.partition(".")[0] == recipe.CARRIED_PACKAGE and handler not in loading.PACKAGE_HANDLERS
    return "" if own and envelope in _READ_BY_OUR_HANDLERS else envelope


def _devices(config: _ModelConfig, count: int) -> tuple[bool, tuple[int, ...]]:
    """Return whether workers run on GPUs, and which of these the archive names."""
    device_type, ids = config.get("deviceType"), config.get("deviceIds")
    device_type = device_type.lower() if isinstance(device_type, str) else device_type
    if device_type not in (None, "", "cpu", "gpu"):
        config.ignore("deviceType", "should be cpu or gpu")
    if not count or device_type == "cpu":
        return False, ()
    if ids is None:
        return True, ()
    if not isinstance(ids, list) or not ids or any(_whole(index) is None or not 0 <= index < count for index in ids):
        config.ignore("deviceIds", f"should be numbers of GPUs, of which there are {count} (0 to {count - 1})")
        return True, ()
    return True, tuple(ids)


def _stages(config: _ModelConfig, url: str) -> dict[str, int]:
    """Return the number of workers by stage; empty: there are no stages.

    Without the stage ``inference``, there are as many workers with the model as without stages.
    """
    stages = config.get("stages")
    if not are_stages(stages):
        return {}
    wrong = [f"there is no stage {name!r}" for name in stages if name not in Stages.model_fields]
    wrong += [
        f"{name}: {value!r} is no number of workers from 1 to {MAX_WORKERS}"
        for name, value in stages.items()
        if name in Stages.model_fields and not 1 <= (_whole(value) or 0) <= MAX_WORKERS
    ]
    if not stages.keys() & {"preprocess", "postprocess"}:
        wrong.append(NO_STAGE)
    if wrong:
        message = f"{url}: its model-config.yaml: stages: {'; '.join(wrong)}"
        example = "stages: {preprocess: 2, inference: 1, postprocess: 1}"
        raise ApiError(400, "InvalidModelException", f"{message}. Write {example}")
    if not staged_pool.available():
        config.ignore("stages", "they take memory that processes share as on Linux; workers do all of a request")
        return {}
    return dict(stages)


def _fork(config: _ModelConfig) -> bool | None:
    """Return the value of ``torchmar: {fork: ...}``; None: it is not set."""
    section = config.get("torchmar")
    if section is None:
        return None
    if not isinstance(section, Mapping):
        config.ignore("torchmar", "should be a section, such as torchmar: {fork: true}")
        return None
    value = section.get("fork")
    if unknown := [str(name) for name in section if name not in TorchmarConfig.model_fields]:
        config.ignore("torchmar", f"there is no key {', '.join(unknown)} in this section; it has fork and replica")
    if value is not None and not isinstance(value, bool):
        config.ignore("torchmar", "fork should be true or false")
        return None
    return value


def _replica(config: _ModelConfig, url: str) -> Replica | None:
    """Return the section ``torchmar: {replica: ...}``; None: there is none.

    Raises:
        ApiError: 400; it is wrong: with fewer resources than its author wrote, replicas would share what they must not.
    """
    section = config.get("torchmar")
    if not isinstance(section, Mapping) or section.get("replica") is None:
        return None
    try:
        return Replica.model_validate(section["replica"])
    except ValidationError as error:
        reasons = [
            ": ".join(filter(None, (".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, "))))
            for detail in error.errors()
        ]
        message = f"{url}: its model-config.yaml: torchmar: replica: {'; '.join(reasons)}"
        example = "replica: {cpus: 2, gpus: 0.5, memory: 4GiB, resources: {a100: 1}}"
        raise ApiError(400, "InvalidModelException", f"{message}. Write {example}") from None


def _check_supported(config: Mapping[str, Any], runtime: str, url: str) -> None:
    unsupported = [key for key in UNSUPPORTED_KEYS if config.get(key)]
    if unsupported:
        message = f"{url}: its model-config.yaml sets {', '.join(unsupported)}, which this server does not do"
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
