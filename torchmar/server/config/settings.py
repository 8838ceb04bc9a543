"""The typed configuration of the server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torchmar.address import Address
from torchmar.archive import file_digest
from torchmar.properties import Properties
from torchmar.server.config import available_versions, startup_models
from torchmar.server.config.available_versions import AvailableVersion
from torchmar.server.config.base_paths import BasePath, VersionPolicy
from torchmar.server.config.routes import Route
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.http import Cors
from torchmar.server.telemetry.logs import Layout

_DEFAULT_ADDRESSES = {address.key: address for address in Properties(None, {}).addresses()}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of a server; names are TorchServe's keys if a key corresponds to one value.

    Attributes:
        model_store: the folder with the archives.
        file: the ``config.properties`` that was read; None: there is none.
        inference, management, metrics: addresses of the APIs over HTTP; two may share one.
        grpc_inference, grpc_management: addresses of the APIs over gRPC.
        grpc_ages: limits for the age of a gRPC connection, and for its last calls after that, in milliseconds, by key.
        ts_open_inference_protocol: whether KServe's protocol is served over gRPC.
        load_models: registrations at the start, ``(name or "", url)``; or ``"all"``. See `startup_models`.
        model_snapshot: models of a snapshot, which KServe also writes; None: there is none.
        models: options of versions, by model and version, under TorchServe's names (``minWorkers``).
        default_workers_per_model: number of workers of a registration without a number; 0 is none.
        default_response_timeout: seconds.
        default_startup_timeout: seconds.
        default_service_handler: handler of archives that name none.
        unregister_model_timeout: limit for an unregistration in seconds.
        service_envelope: ``kserve``, ``kservev2``, ...; empty: none.
        job_queue_size: largest number of waiting requests of each version.
        max_request_size, max_response_size: sizes in bytes.
        limit_max_image_pixels, decode_input_request, ipex_enable: passed to workers.
        blacklist_env_vars: pattern for names of variables that workers do not get.
        number_of_gpu: number of GPUs for workers, at most those of the machine.
        tokens: whether requests need a token.
        token_expiration_min: minutes until a token expires.
        fixed_tokens: tokens by API that do not change, from ``torchmar_inference_token_file``,
            ``torchmar_management_token_file``, ``torchmar_read_token_file`` or the variables of `TOKEN_VARIABLES`;
            other tokens are random and expire, and there is none for readers.
        health_token: ``torchmar_health_token``; whether health checks also need a token.
        health_path: ``torchmar_health_path``; a further path for health checks; empty: none.
        platform: ``torchmar_platform``; the platform whose paths the inference API also has; empty: none.
        model_api: whether models may be registered and unregistered.
        allowed_urls: patterns of which one must match the URL of an archive; default: URLs of the model store.
        install_py_dep_per_model: whether the requirements in archives are installed, and their environments built.
        private_key_file, certificate_file: PEM files, for TLS.
        grpc_tls: whether gRPC uses TLS.
        cors: rights of pages of other origins; None without ``cors_allowed_origin``.
        metrics_api: whether the metrics API is served.
        metrics_config: a ``metrics.yaml`` in place of TorchServe's.
        model_metrics_auto_detect: whether metrics of handlers are shown without an entry in the file.
        disable_system_metrics: whether metrics of the machine are left out.
        snapshots: ``torchmar_snapshots``; folder for snapshots; None: none are written.
        state_file: ``torchmar_state_file``; file for the registered models; None: none is written.
        check_archives: ``torchmar_check_archives``; whether archives are checked before their code runs.
        ignored_checks: ``torchmar_ignore_checks``; codes of checks, or prefixes of codes, to ignore.
        console_uploads: ``torchmar_console_uploads``; whether the console puts archives into the model store.
        max_download_size: ``torchmar_max_download_size``; largest size of a download in bytes.
        download_retries: ``torchmar_download_retries``; attempts after one that received no further byte.
        shutdown_delay: ``torchmar_shutdown_delay``; seconds after SIGTERM in which requests are still accepted.
        venv_folder: ``torchmar_venv_folder``; the folder of archives' environments; None: that of the user.
        worker_memory: ``torchmar_worker_memory``; memory limit of a worker on a CPU in bytes; 0: no limit.
        worker_poll_us: ``torchmar_worker_poll_us``; microseconds that a worker and the server busy-poll for each other.
        log_format: ``torchmar_log_format``; the format of log lines.
        access_log: ``torchmar_access_log``; whether each request is logged.
        otlp_endpoint: ``torchmar_otlp_endpoint``; collector of traces; empty: that of OpenTelemetry's variables.
        trace_ratio: ``torchmar_trace_ratio``; share of requests that are traced; None: that of OpenTelemetry's
            variables.
        ray_address: ``torchmar_ray_address``; address of the cluster's head; empty: a cluster of this machine alone.
        ray_group: ``torchmar_ray_group``; servers of a cluster in the same group serve the same models.
        ray_cpus: ``torchmar_ray_cpus``; number of cores of a replica.
        ray_gpus: ``torchmar_ray_gpus``; number of GPUs of a replica that uses them, possibly a fraction.
        watch: ``torchmar_watch``; versions to serve of each model in the model store, whose archives may change; None:
            it is not watched.
        watch_seconds: ``torchmar_watch_seconds``; interval of reading watched folders; 0: they are only read at the
            start.
        model_base_paths: ``torchmar_model_base_paths``; watched folders, each with the versions of a model.
        routes: ``torchmar_routes``; the user's own paths for models.
    """

    model_store: Path
    file: Path | None = None
    inference: Address = _DEFAULT_ADDRESSES["inference_address"]
    management: Address = _DEFAULT_ADDRESSES["management_address"]
    metrics: Address = _DEFAULT_ADDRESSES["metrics_address"]
    grpc_inference: Address = _DEFAULT_ADDRESSES["grpc_inference_port"]
    grpc_management: Address = _DEFAULT_ADDRESSES["grpc_management_port"]
    grpc_ages: Mapping[str, int] = field(default_factory=dict)
    ts_open_inference_protocol: bool = True
    load_models: tuple[tuple[str, str], ...] | Literal["all"] = ()
    model_snapshot: tuple[StartupModel, ...] | None = None
    models: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    default_workers_per_model: int = 0
    default_response_timeout: int = 120
    default_startup_timeout: int = 120
    default_service_handler: str = ""
    unregister_model_timeout: int = 120
    service_envelope: str = ""
    job_queue_size: int = 100
    max_request_size: int = 6_553_500
    max_response_size: int = 6_553_500
    limit_max_image_pixels: bool = True
    decode_input_request: bool = True
    ipex_enable: bool = False
    blacklist_env_vars: re.Pattern[str] | None = None
    number_of_gpu: int = 0
    tokens: bool = True
    token_expiration_min: float = 60.0
    fixed_tokens: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    health_token: bool = False
    health_path: str = ""
    platform: str = ""
    model_api: bool = False
    allowed_urls: tuple[re.Pattern[str], ...] = ()
    install_py_dep_per_model: bool = False
    private_key_file: Path | None = None
    certificate_file: Path | None = None
    grpc_tls: bool = False
    cors: Cors | None = None
    metrics_api: bool = True
    metrics_config: Path | None = None
    model_metrics_auto_detect: bool = False
    disable_system_metrics: bool = False
    snapshots: Path | None = None
    state_file: Path | None = None
    check_archives: bool = True
    ignored_checks: tuple[str, ...] = ()
    console_uploads: bool = True
    max_download_size: int = 20 << 30
    download_retries: int = 5
    shutdown_delay: int = 0
    venv_folder: Path | None = None
    ray_address: str = ""
    ray_group: str = ""
    ray_cpus: float = 1.0
    ray_gpus: float = 1.0
    worker_memory: int = 0
    worker_poll_us: int = 300
    log_format: Layout = "text"
    access_log: bool = False
    otlp_endpoint: str = ""
    trace_ratio: float | None = None
    watch: VersionPolicy | None = None
    watch_seconds: int = 1
    model_base_paths: tuple[BasePath, ...] = ()
    routes: Mapping[str, Route] = field(default_factory=dict)

    def startup_models(self) -> list[StartupModel]:
        """Return the models that the server loads at startup.

        These are the models of the snapshot, which takes precedence over ``load_models``, as in TorchServe; for
        ``all``, every archive in the model store at this time.
        """
        if self.model_snapshot is not None:
            return list(self.model_snapshot)
        return [*self._loaded_models(), *self._watched_models()]

    def _loaded_models(self) -> list[StartupModel]:
        if self.load_models == "all":
            return startup_models.in_store(self.model_store) if self.watch is None else []
        located = [(name, *file_digest.split(url)) for name, url in self.load_models]
        return [
            StartupModel(url, name=name, fallback=startup_models.fallback_name(url), digest=digest)
            for name, url, digest in located
        ]

    def _watched_models(self) -> list[StartupModel]:
        """Return the versions to serve from the watched folders; of each model the newest first, as its default."""
        by_model: dict[str, list[AvailableVersion]] = {}
        for version in available_versions.in_store(self.model_store) if self.watch else ():
            by_model.setdefault(version.model, []).append(version)
        selected = [available_versions.select(versions, self.watch) for versions in by_model.values() if self.watch]
        labels: dict[tuple[str, str], list[str]] = {}
        for base_path in self.model_base_paths:
            for label, labelled in base_path.labels.items():
                labels.setdefault((base_path.name, labelled), []).append(label)
            selected.append(available_versions.select(available_versions.in_base_path(base_path), base_path.policy))
        return [
            StartupModel(
                str(version.path),
                key="torchmar_watch" if version.path.parent == self.model_store else "torchmar_model_base_paths",
                name=version.model,
                served_version=version.version,
                state={"labels": labels.get((version.model, version.version), [])},
            )
            for versions in selected
            for version in reversed(versions)
        ]

    def worker_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of workers: all except those that match ``blacklist_env_vars``, and TorchServe's own."""
        pattern = self.blacklist_env_vars
        inherited = {name: value for name, value in environment.items() if not (pattern and pattern.fullmatch(name))}
        variables = {"TS_DECODE_INPUT_REQUEST": self.decode_input_request, "TS_IPEX_ENABLE": self.ipex_enable}
        return {**inherited, **{name: str(value).lower() for name, value in variables.items()}}
