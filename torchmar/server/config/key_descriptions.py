"""Descriptions of all supported keys of ``config.properties``, by group, for the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class KeyDescription(NamedTuple):
    """The description of one key.

    Attributes:
        group: group of the key, one of `GROUPS`.
        text: meaning of the key, in a sentence or two, with its unit.
        default: default, for keys without a field in `torchmar.server.config.settings.Settings`.
    """

    group: str
    text: str
    default: str = ""


ADDRESSES = "Addresses"
MODELS = "Models"
WORKERS = "Workers and queues"
CLUSTER = "Clusters (torchmar serve --engine ray)"
ACCESS = "Tokens and access"
TLS = "TLS and other origins"
REQUESTS = "Requests"
METRICS = "Metrics and logs"
GROUPS = (ADDRESSES, MODELS, WORKERS, CLUSTER, ACCESS, TLS, REQUESTS, METRICS)

DESCRIPTIONS: Mapping[str, KeyDescription] = {
    "allowed_urls": KeyDescription(
        ACCESS,
        "Comma-separated regular expressions. An archive may be registered from a URL that one of them matches as a "
        "whole.",
        "the files of the model store",
    ),
    "blacklist_env_vars": KeyDescription(
        WORKERS, "Workers do not get environment variables whose names match this regular expression."
    ),
    "certificate_file": KeyDescription(TLS, "The server's certificate, in PEM format."),
    "cors_allowed_headers": KeyDescription(TLS, "Request headers that pages of other origins may send.", "none"),
    "cors_allowed_methods": KeyDescription(TLS, "Methods that pages of other origins may use.", "none"),
    "cors_allowed_origin": KeyDescription(
        TLS, "The origin whose pages may call the server; `*` is any. Without it no CORS headers are sent.", "none"
    ),
    "decode_input_request": KeyDescription(
        REQUESTS, "Whether handlers get JSON and text bodies decoded instead of as bytes."
    ),
    "default_response_timeout": KeyDescription(
        WORKERS, "Seconds in which a worker must answer a batch, for models that do not set it."
    ),
    "default_service_handler": KeyDescription(MODELS, "The handler of archives that name none."),
    "default_startup_timeout": KeyDescription(
        WORKERS, "Seconds in which a worker must load its model, for models that do not set it; 0 is no limit."
    ),
    "default_workers_per_model": KeyDescription(
        WORKERS, "Workers that a registration starts when neither it nor the archive sets a number."
    ),
    "disable_system_metrics": KeyDescription(METRICS, "Whether the metrics of the machine (CPU, memory) are left out."),
    "disable_token_authorization": KeyDescription(ACCESS, "`true` switches tokens off.", "`false`"),
    "enable_envvars_config": KeyDescription(
        MODELS, "Whether `TS_*` variables, which are listed on this page, override the file.", "`false`"
    ),
    "enable_grpc_ssl": KeyDescription(TLS, "Whether gRPC uses TLS, with the same key and certificate."),
    "enable_metrics_api": KeyDescription(METRICS, "Whether the metrics API is served."),
    "enable_model_api": KeyDescription(
        ACCESS,
        "Whether models can be registered and unregistered while the server runs. A registration runs the code of the "
        "archive. `torchmar serve` without a configuration file sets `true`.",
    ),
    "grpc_inference_address": KeyDescription(
        ADDRESSES, "The IP address of the inference services over gRPC.", "`127.0.0.1`"
    ),
    "grpc_inference_max_connection_age_grace_ms": KeyDescription(
        ADDRESSES, "Milliseconds in which calls may end after a gRPC connection has reached its age.", "no limit"
    ),
    "grpc_inference_max_connection_age_ms": KeyDescription(
        ADDRESSES, "Milliseconds after which a gRPC connection is closed.", "no limit"
    ),
    "grpc_inference_port": KeyDescription(ADDRESSES, "The port of the inference services over gRPC.", "`7070`"),
    "grpc_management_address": KeyDescription(
        ADDRESSES, "The IP address of the management service over gRPC.", "`127.0.0.1`"
    ),
    "grpc_management_max_connection_age_grace_ms": KeyDescription(
        ADDRESSES, "As `grpc_inference_max_connection_age_grace_ms`.", "no limit"
    ),
    "grpc_management_max_connection_age_ms": KeyDescription(
        ADDRESSES, "As `grpc_inference_max_connection_age_ms`.", "no limit"
    ),
    "grpc_management_port": KeyDescription(ADDRESSES, "The port of the management service over gRPC.", "`7071`"),
    "inference_address": KeyDescription(
        ADDRESSES,
        "The inference API: `http://HOST:PORT`, `https://HOST:PORT` or `unix:/PATH`. Without a port: 80, or 443 with "
        "https.",
        "`http://127.0.0.1:8080`",
    ),
    "install_py_dep_per_model": KeyDescription(
        MODELS,
        "Whether the requirements in an archive are installed with pip when it is registered, and the environment of "
        "an archive with a `runtime` is built with uv.",
    ),
    "ipex_enable": KeyDescription(WORKERS, "Passed to the workers as TorchServe does, for Intel's extension."),
    "job_queue_size": KeyDescription(
        WORKERS, "Requests that may wait for a worker, for each version; further requests get 503."
    ),
    "limit_max_image_pixels": KeyDescription(
        REQUESTS, "Passed to the workers: whether images above Pillow's limit of pixels are rejected."
    ),
    "load_models": KeyDescription(
        MODELS,
        "Models to load at the start: `all`, `none`, or a comma-separated list of `archive.mar`, `name=archive.mar`, "
        "`name=https://...` and `name=/FOLDER`.",
        "none",
    ),
    "management_address": KeyDescription(
        ADDRESSES,
        "The management API; as `inference_address`. Without a port: 8081, or 8444 with https.",
        "`http://127.0.0.1:8081`",
    ),
    "max_request_size": KeyDescription(
        REQUESTS, "Bytes of a request body, after decompression; a larger one gets 413."
    ),
    "max_response_size": KeyDescription(REQUESTS, "Bytes of a response body; a larger one becomes an error 500."),
    "metrics_address": KeyDescription(
        ADDRESSES,
        "The metrics API; as `inference_address`. Without a port: 8082, or 8445 with https.",
        "`http://127.0.0.1:8082`",
    ),
    "metrics_config": KeyDescription(METRICS, "A `metrics.yaml` in TorchServe's format that lists handlers' metrics."),
    "metrics_mode": KeyDescription(
        METRICS, "Accepted as by TorchServe; metrics are served over HTTP in every mode.", "`prometheus`"
    ),
    "model_metrics_auto_detect": KeyDescription(
        METRICS, "Whether metrics of handlers are shown that `metrics_config` does not list."
    ),
    "model_snapshot": KeyDescription(
        MODELS,
        "The models to load instead of `load_models`: TorchServe's snapshot as JSON, or KServe's list of models.",
        "none",
    ),
    "model_store": KeyDescription(MODELS, "The folder with the archives.", "`model_store`"),
    "models": KeyDescription(
        MODELS, "JSON with the settings of versions, which override those of the registration.", "none"
    ),
    "number_of_gpu": KeyDescription(WORKERS, "GPUs to use; never more than the machine has.", "all"),
    "private_key_file": KeyDescription(TLS, "The private key of the certificate, in PEM format, without a password."),
    "service_envelope": KeyDescription(
        REQUESTS,
        "TorchServe's envelope around every handler: `kserve`, `kservev2`, `json` or `body`. Handlers of torchmar get "
        "requests without `kserve` and `kservev2`: they read these protocols themselves.",
        "none",
    ),
    "token_expiration_min": KeyDescription(ACCESS, "Minutes after which a token of `key_file.json` expires."),
    "torchmar_access_log": KeyDescription(METRICS, "Whether `logs/access.log` gets a line for each HTTP request."),
    "torchmar_check_archives": KeyDescription(
        ACCESS, "Whether archives are checked, with their digests, before any of their code runs."
    ),
    "torchmar_console_uploads": KeyDescription(
        ACCESS,
        "Whether the console puts archives that are dropped into it into the model store; it needs `enable_model_api` "
        "and the right to manage models, too.",
    ),
    "torchmar_download_retries": KeyDescription(
        MODELS,
        "Attempts to continue a download whose connection broke, before it fails; each byte that arrives starts the "
        "count again.",
    ),
    "torchmar_envvars_read": KeyDescription(
        MODELS, "Set by `torchmar-serve`: the `TS_*` variables are already applied.", "`false`"
    ),
    "torchmar_health_path": KeyDescription(
        ACCESS,
        "A further path of the inference API for health checks, which need no token there: 200 when the workers of all "
        "models are ready, and otherwise 503.",
        "none",
    ),
    "torchmar_health_token": KeyDescription(ACCESS, "Whether health checks need a token."),
    "torchmar_inference_token_file": KeyDescription(
        ACCESS,
        "A file with a fixed inference token of at least 16 characters, or with several, one on each line.",
        "none: tokens are random and expire",
    ),
    "torchmar_ignore_checks": KeyDescription(
        ACCESS,
        "Codes of [checks](../checks.md), or beginnings of codes, whose findings do not keep an archive from being "
        "loaded. The parameter `torchmar_ignore_checks` of a registration adds to them.",
        "none",
    ),
    "torchmar_log_format": KeyDescription(METRICS, "`text` as TorchServe's logs, or `json`: one object on each line."),
    "torchmar_management_token_file": KeyDescription(
        ACCESS,
        "A file with a fixed management token of at least 16 characters, or with several, one on each line.",
        "none: tokens are random and expire",
    ),
    "torchmar_max_download_size": KeyDescription(MODELS, "Bytes of an archive that is downloaded.", "20 GiB"),
    "torchmar_model_base_paths": KeyDescription(
        MODELS,
        "Folders with the versions of a model, `1/` or `2.mar`, by model: a path, or an object with `base_path`, "
        '`versions` (`{"latest": 1}`, `"all"` or a list of numbers) and `labels`. New versions are served when they '
        "appear.",
        "none",
    ),
    "torchmar_otlp_endpoint": KeyDescription(
        METRICS,
        "The URL of a collector, without a path, that takes OTLP over HTTP: the "
        "[spans](../how-to/trace-requests.md) of requests are sent to it. It precedes OpenTelemetry's variables, such "
        "as `OTEL_EXPORTER_OTLP_ENDPOINT`.",
        "none",
    ),
    "torchmar_platform": KeyDescription(
        MODELS,
        "Set by `torchmar serve --platform`: the inference API also has the paths that SageMaker demands of containers "
        "(`sagemaker`), or of those with several models (`sagemaker-multi-model`).",
        "none",
    ),
    "torchmar_ray_address": KeyDescription(
        CLUSTER,
        "The address of the cluster's head, which `--address` sets, too.",
        "none: a cluster of this machine alone",
    ),
    "torchmar_ray_cpus": KeyDescription(CLUSTER, "Cores that Ray keeps free for a replica, which has one worker."),
    "torchmar_ray_gpus": KeyDescription(
        CLUSTER, "GPUs of a replica whose model runs on GPUs; `0.5` puts two replicas on each."
    ),
    "torchmar_ray_group": KeyDescription(
        CLUSTER,
        "Servers of a cluster with the same group serve the same models; those of different groups share nothing but "
        "the nodes.",
        "none: the group of all servers without this key",
    ),
    "torchmar_read_token_file": KeyDescription(
        ACCESS,
        "A file with the token, or the tokens, of those who may read the management API and change nothing.",
        "none",
    ),
    "torchmar_routes": KeyDescription(
        MODELS,
        "Paths of your choice that lead to the predictions of models, as JSON: by path the name of a model, or an "
        "object with `model` and `version`. See [Keep the URL of a service](../how-to/keep-a-url.md).",
        "none",
    ),
    "torchmar_shutdown_delay": KeyDescription(
        ADDRESSES,
        "Seconds after SIGTERM in which the server answers new requests while its health checks report that it is not "
        "ready, so that load balancers have removed it before it stops listening.",
    ),
    "torchmar_snapshots": KeyDescription(
        MODELS, "Set by `torchmar-serve`: the folder for snapshots.", "none are written"
    ),
    "torchmar_state_file": KeyDescription(
        MODELS,
        "Set by `torchmar serve`: the file with the registered models, from which the next start restores them.",
        "none is written",
    ),
    "torchmar_trace_ratio": KeyDescription(
        METRICS,
        "The share of the requests that are traced, from 0 to 1, where the client has not decided it "
        "(`traceparent`). It precedes `OTEL_TRACES_SAMPLER`.",
        "all",
    ),
    "torchmar_venv_folder": KeyDescription(
        MODELS,
        "The folder of the environments of archives with a `runtime`, which servers and commands share.",
        "`~/.cache/torchmar/venvs`",
    ),
    "torchmar_watch": KeyDescription(
        MODELS,
        "`latest` serves the newest version of each model of the model store, `all` every version; new archives are "
        "served when they appear, in place of `load_models=all`.",
        "`false`",
    ),
    "torchmar_watch_seconds": KeyDescription(
        MODELS, "Seconds between two readings of watched folders; `0`: they are only read at the start."
    ),
    "torchmar_worker_memory": KeyDescription(
        WORKERS, "Memory that a worker on a CPU may allocate, in bytes or as `512MiB` or `4GiB` (Linux).", "no limit"
    ),
    "torchmar_worker_poll_us": KeyDescription(
        WORKERS,
        "Microseconds for which a worker busy-polls for its next request, and the server for the answer to a "
        "single request, when the previous one came as fast. `0` uses less CPU time and makes fast requests slower.",
    ),
    "ts_open_inference_protocol": KeyDescription(ADDRESSES, "Whether the Open Inference Protocol is served over gRPC."),
    "unregister_model_timeout": KeyDescription(
        WORKERS,
        "Seconds that an unregistration may take. One that takes longer gets 408, and the version stays.",
    ),
    "use_env_allowed_urls": KeyDescription(ACCESS, "Whether `TS_ALLOWED_URLS` may set `allowed_urls`.", "`false`"),
}
