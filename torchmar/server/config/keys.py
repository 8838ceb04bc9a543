"""The keys of ``config.properties``: those of the server, and those of TorchServe alone.

This is the only list of keys: the server reads values with it, ``torchmar doctor`` checks configurations with it, and
engines use it to find paths in a configuration. TorchServe's keys are the constants of its ConfigManager (0.12.0), and
two keys of its launcher (plugins_path, vmargs). Defaults and ports of addresses are in `torchmar.properties`, because
clients read them, too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torchmar import byte_sizes, properties
from torchmar.server.config import base_paths, routes, startup_models
from torchmar.server.config import values as values

Kind = Literal["flag", "number", "text", "path"]

OWN_PREFIX = "torchmar_"
#: The variables with tokens for a server, by API. Clients read others (`torchmar.connection.endpoint.token_variable`):
#: a token that a user exports for a remote server must not become the token of a server that is started here.
TOKEN_VARIABLES = {api: f"TORCHMAR_SERVER_{api.upper()}_TOKEN" for api in ("inference", "management", "read")}


class ConfigKey(NamedTuple):
    """A key of the configuration: the parser of its value, and the setting that gets it.

    Attributes:
        field: field of `torchmar.server.config.settings.Settings`; empty if several keys determine a field.
        read: parser of the text; raises ValueError.
        example: example of a value.
        kind: kind of the value; a path is absolute, or relative to the folder of ``config.properties``.
    """

    field: str
    read: Callable[[str], Any]
    example: str
    kind: Kind = "text"


def suggest(key: str) -> str | None:
    """Return the key that an unknown key probably means."""
    # TorchServe's documentation and its variables write keys in different ways.
    near = difflib.get_close_matches(re.sub(r"[-.]", "_", key.lower()), [*SUPPORTED_KEYS, *IGNORED_KEYS], 1, 0.75)
    return near[0] if near else None


def _flag(field: str, example: str = "true") -> ConfigKey:
    return ConfigKey(field, values.flag, example, "flag")


def _number(field: str, example: str, least: int, most: int | None = None) -> ConfigKey:
    return ConfigKey(field, values.whole_number(least, most), example, "number")


def _path(field: str, example: str) -> ConfigKey:
    return ConfigKey(field, values.path, example, "path")


def _web_address(api: str) -> ConfigKey:
    key = f"{api}_address"
    return ConfigKey(api, values.web_address(*properties.PORTS[key]), properties.DEFAULTS[key])


SUPPORTED_KEYS: Mapping[str, ConfigKey] = {
    "allowed_urls": ConfigKey("allowed_urls", values.patterns, "https://models.example.com/.*"),
    "blacklist_env_vars": ConfigKey("blacklist_env_vars", values.regular_expression, "AWS_.*|.*_SECRET"),
    "certificate_file": _path("certificate_file", "cert.pem"),
    "cors_allowed_headers": ConfigKey("", str, "X-Custom-Header"),
    "cors_allowed_methods": ConfigKey("", str, "GET, POST, PUT, OPTIONS"),
    "cors_allowed_origin": ConfigKey("", str, "https://example.com"),
    "decode_input_request": _flag("decode_input_request"),
    "default_response_timeout": _number("default_response_timeout", "120", 1),
    "default_service_handler": ConfigKey("default_service_handler", str, "handler:handle"),
    "default_startup_timeout": _number("default_startup_timeout", "120", 0),
    "default_workers_per_model": _number("default_workers_per_model", "2", 0),
    "disable_system_metrics": _flag("disable_system_metrics"),
    "disable_token_authorization": _flag("", example="false"),
    "enable_envvars_config": _flag(""),
    "enable_grpc_ssl": _flag("grpc_tls"),
    "enable_metrics_api": _flag("metrics_api"),
    "enable_model_api": _flag("model_api"),
    "grpc_inference_address": ConfigKey("", str, "127.0.0.1"),
    "grpc_inference_max_connection_age_grace_ms": _number("", "10000", 1),
    "grpc_inference_max_connection_age_ms": _number("", "300000", 1),
    "grpc_inference_port": _number("", "7070", 1, 65535),
    "grpc_management_address": ConfigKey("", str, "127.0.0.1"),
    "grpc_management_max_connection_age_grace_ms": _number("", "10000", 1),
    "grpc_management_max_connection_age_ms": _number("", "300000", 1),
    "grpc_management_port": _number("", "7071", 1, 65535),
    "inference_address": _web_address("inference"),
    "install_py_dep_per_model": _flag("install_py_dep_per_model"),
    "ipex_enable": _flag("ipex_enable"),
    "job_queue_size": _number("job_queue_size", "100", 1),
    "limit_max_image_pixels": _flag("limit_max_image_pixels"),
    "load_models": ConfigKey("load_models", startup_models.parse_load_models, "all"),
    "management_address": _web_address("management"),
    "max_request_size": _number("max_request_size", "6553500", 1),
    "max_response_size": _number("max_response_size", "6553500", 1),
    "metrics_address": _web_address("metrics"),
    "metrics_config": _path("metrics_config", "metrics.yaml"),
    "metrics_mode": ConfigKey("", values.metrics_mode, "prometheus"),  # metrics over HTTP are the same in all modes
    "model_metrics_auto_detect": _flag("model_metrics_auto_detect"),
    "model_snapshot": ConfigKey(
        "model_snapshot",
        startup_models.parse_snapshot,
        '{"models": {"digits": {"1.0": {"defaultVersion": true, "marName": "digits.mar"}}}}',
    ),
    "model_store": ConfigKey("", str, "/srv/model_store"),
    "models": ConfigKey("models", values.models, '{"digits": {"1.0": {"marName": "digits.mar", "minWorkers": 1}}}'),
    "number_of_gpu": _number("", "1", 0),
    "private_key_file": _path("private_key_file", "key.pem"),
    "service_envelope": ConfigKey("service_envelope", str, "kserve"),
    "token_expiration_min": ConfigKey("token_expiration_min", values.minutes, "60", "number"),
    "torchmar_access_log": _flag("access_log"),
    "torchmar_check_archives": _flag("check_archives"),
    "torchmar_console_uploads": _flag("console_uploads", "false"),
    "torchmar_download_retries": _number("download_retries", "5", 0),
    "torchmar_envvars_read": _flag(""),
    "torchmar_health_path": ConfigKey("health_path", values.url_path, "/healthz"),
    "torchmar_health_token": _flag("health_token"),
    "torchmar_inference_token_file": _path("", "/run/secrets/inference_token"),
    "torchmar_ignore_checks": ConfigKey("ignored_checks", values.codes_of_checks, "MAR601,MAR4"),
    "torchmar_log_format": ConfigKey("log_format", values.log_layout, "json"),
    "torchmar_management_token_file": _path("", "/run/secrets/management_token"),
    "torchmar_max_download_size": _number("max_download_size", "21474836480", 1),
    "torchmar_model_base_paths": ConfigKey("model_base_paths", base_paths.parse, '{"digits": "/models/digits"}'),
    "torchmar_otlp_endpoint": ConfigKey("otlp_endpoint", values.collector_url, "http://127.0.0.1:4318"),
    "torchmar_platform": ConfigKey("platform", values.platform, "sagemaker"),
    "torchmar_ray_address": ConfigKey("ray_address", str, "10.0.0.1:6379"),
    "torchmar_ray_cpus": ConfigKey("ray_cpus", values.amount, "0.5", "number"),
    "torchmar_ray_gpus": ConfigKey("ray_gpus", values.amount, "0.5", "number"),
    "torchmar_ray_group": ConfigKey("ray_group", values.group, "blue"),
    "torchmar_read_token_file": _path("", "/run/secrets/read_token"),
    "torchmar_routes": ConfigKey("routes", routes.parse, '{"/inference": "clinic"}'),
    "torchmar_shutdown_delay": _number("shutdown_delay", "10", 0),
    "torchmar_snapshots": _path("snapshots", "logs/config"),
    "torchmar_state_file": _path("state_file", "state.json"),
    "torchmar_trace_ratio": ConfigKey("trace_ratio", values.share, "0.1", "number"),
    "torchmar_venv_folder": _path("venv_folder", "/var/lib/torchmar/venvs"),
    "torchmar_watch": ConfigKey("watch", values.watch_policy, "latest"),
    "torchmar_watch_seconds": _number("watch_seconds", "10", 0),
    "torchmar_worker_memory": ConfigKey("worker_memory", byte_sizes.parse, "4GiB"),
    "torchmar_worker_poll_us": _number("worker_poll_us", "0", 0),
    "ts_open_inference_protocol": _flag("ts_open_inference_protocol"),
    "unregister_model_timeout": _number("unregister_model_timeout", "120", 0),
    "use_env_allowed_urls": _flag(""),
}
# Keys of Java, of TorchServe's launcher, or of features that this server lacks: workflows, plugins, sequences.
IGNORED_KEYS: Mapping[str, Kind] = {
    "async_logging": "flag",
    "cpp_log_config": "path",
    "cpu_launcher_args": "text",
    "cpu_launcher_enable": "flag",
    "debug": "flag",
    "initial_distribution_port": "number",
    "initial_worker_port": "number",
    "io_ratio": "number",
    "ipex_gpu_enable": "flag",
    "keystore": "path",
    "keystore_pass": "text",
    "keystore_type": "text",
    "metric_time_interval": "number",
    "metrics_format": "text",
    "model_server_home": "text",
    "netty_client_threads": "number",
    "number_of_netty_threads": "number",
    "plugins_path": "path",
    "prefer_direct_buffer": "flag",
    "python": "text",
    "snapshot_store": "text",
    "system_metrics_cmd": "text",
    "tsConfigFile": "text",
    "ts_header_key_sequence_end": "text",
    "ts_header_key_sequence_id": "text",
    "ts_header_key_sequence_start": "text",
    "use_native_io": "flag",
    "version": "text",
    "vmargs": "text",
    "workflow_store": "text",
}
TORCHSERVE_KINDS: Mapping[str, Kind] = {
    **{key: config_key.kind for key, config_key in SUPPORTED_KEYS.items() if not key.startswith(OWN_PREFIX)},
    **IGNORED_KEYS,
}
#: Keys whose values are paths of the user's files.
PATH_KEYS = tuple(
    sorted(
        {key for key, config_key in SUPPORTED_KEYS.items() if config_key.kind == "path"}
        | {key for key, kind in IGNORED_KEYS.items() if kind == "path"}
    )
)
# TorchServe finds a variable by the name of the ConfigManager constant with the key's name.
_NO_VARIABLE = (
    *("enable_envvars_config", "io_ratio", "metric_time_interval", "metrics_format", "model_snapshot", "models"),
    *("plugins_path", "python", "snapshot_store", "system_metrics_cmd", "token_expiration_min", "tsConfigFile"),
    "ts_open_inference_protocol",
    *("use_env_allowed_urls", "use_native_io", "version", "vmargs", "model_server_home"),
)
VARIABLES: Mapping[str, str] = {
    f"TS_{key.removeprefix('ts_').upper()}": key
    for key in (*SUPPORTED_KEYS, *IGNORED_KEYS)
    if key not in _NO_VARIABLE and not key.startswith(OWN_PREFIX)
} | {"TS_TOKEN_EXPIRATION_TIME_MIN": "token_expiration_min"}
