"""``torchmar-tfserving``: the flags of tensorflow_model_server, one word to change in a container's entrypoint.

It runs in the foreground, serves archives in place of SavedModels below a base path (``1/`` or ``2.mar``), and new ones
when they appear. Differences: it listens on loopback unless ``--host`` or TORCHMAR_HOST names another host; a flag that
concerns TensorFlow has no effect, and is named in a warning.

https://github.com/tensorflow/serving/blob/master/tensorflow_serving/model_servers/main.cc and, for the variables, its
Docker image: https://www.tensorflow.org/tfx/serving/docker
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torchmar
from torchmar import properties
from torchmar.cli import addresses
from torchmar.cli.exit_codes import exit_codes
from torchmar.cli.foreground import become
from torchmar.cli.terminal import err
from torchmar.cli.terminal import lasting_out as out
from torchmar.connection import RUN_FOLDER
from torchmar.engines.server_records import ServerRecord
from torchmar.errors import PropertiesError, TorchmarError
from torchmar.server.config import available_versions, base_paths, reader
from torchmar.server.config.base_paths import BasePath, VersionPolicy

_VERSION = "2.19.1"  # version of TensorFlow Serving with these flags
_GRPC_PORT, _REST_PORT = 8500, 8501
#: Flags that concern TensorFlow, or functions that torchmar's server always has.
_IGNORED = (
    *("allow_version_labels_for_unavailable_models", "batching_parameters_file", "enable_batching"),
    *("enable_model_warmup", "enable_per_model_batching_parameters", "flush_filesystem_caches"),
    *("grpc_channel_arguments", "grpc_max_threads", "grpc_socket_path", "load_retry_interval_micros"),
    *("max_num_load_retries", "model_config_file_poll_wait_seconds", "monitoring_config_file", "num_load_threads"),
    *("num_request_iterations_for_warmup", "num_tflite_pools", "num_unload_threads"),
    *("per_process_gpu_memory_fraction", "platform_config_file", "prefer_tflite_model"),
    *("remove_unused_fields_from_bundle_metagraph", "rest_api_num_threads", "rest_api_timeout_in_ms"),
    *("saved_model_tags", "ssl_config_file", "tensorflow_inter_op_parallelism", "tensorflow_intra_op_parallelism"),
    *("tensorflow_session_parallelism", "use_tflite_model"),
)


def main() -> None:
    """Run the command and exit: 1 an error, 2 wrong usage, 130 interrupted; otherwise it becomes the server."""
    options = argument_parser().parse_args()
    folder = Path(options.run_folder or os.environ.get("TORCHMAR_RUN_FOLDER") or RUN_FOLDER).resolve()
    with exit_codes(folder):
        if options.version:
            out.print(f"TensorFlow ModelServer: {_VERSION} (torchmar {torchmar.__version__})")
        else:
            start(options, folder)


def start(options: argparse.Namespace, folder: Path) -> None:
    """Replace this process with the server.

    Raises:
        TorchmarError: the models or a value of the configuration are wrong, or a server runs in the folder.
    """
    paths = _model_config_file(Path(options.model_config_file)) if options.model_config_file else (_model(options),)
    store = folder / "models"
    store.mkdir(parents=True, exist_ok=True)
    host = options.host
    values = {
        "inference_address": f"http://{f'[{host}]' if ':' in host else host}:{options.rest_api_port}",
        "grpc_inference_address": host,
        "grpc_inference_port": str(options.port),
        "disable_token_authorization": "true",  # clients of TensorFlow Serving have no tokens
        "model_store": str(store),
        "torchmar_model_base_paths": base_paths.show(paths),
        "torchmar_watch_seconds": str(options.file_system_poll_wait_seconds),
    }
    if options.rest_api_enable_cors_support:
        values["cors_allowed_origin"] = "*"
    values = {**_other_ports(max(options.port, options.rest_api_port)), **_config(options.config), **values}
    _, warnings = reader.read(None, {}, **values)
    if ignored := [f"--{name}" for name in _IGNORED if getattr(options, name) is not None]:
        warnings = [f"without effect here: {', '.join(ignored)}", *warnings]
    for base_path in paths:
        if not base_path.path.is_dir():
            warnings.append(f"{base_path.path} does not exist; {base_path.name} is served when it has a version")
        elif not available_versions.in_base_path(base_path):
            warnings.append(
                f"{base_path.path} has no archive with a number as its name, such as 1.mar or 1/; {base_path.name} is "
                "served when it has one"
            )
    for warning in warnings:
        err.print(f"warning: {warning}", markup=False)

    def announce(record: ServerRecord) -> None:
        out.print(f"torchmar {torchmar.__version__}, built in", markup=False)
        for line in addresses.lines(properties.read(folder / "config.properties"), "builtin"):
            out.print(line, markup=False)
        for base_path in paths:
            out.print(f"  {base_path.name}  {base_path.path}", markup=False)

    become(values, folder, announce)


def _other_ports(last: int) -> dict[str, str]:
    """Return addresses of the APIs that TensorFlow Serving does not have: the three ports after its own.

    So a second server needs only the flags of a second TensorFlow Serving, and its own run folder.
    """
    return {
        "management_address": f"http://127.0.0.1:{last + 1}",
        "metrics_address": f"http://127.0.0.1:{last + 2}",
        "grpc_management_port": str(last + 3),
    }


def _model(options: argparse.Namespace) -> BasePath:
    """Return the model of the flags, or of the variables of TensorFlow Serving's Docker image."""
    name = options.model_name or os.environ.get("MODEL_NAME") or "model"
    if options.model_base_path:
        path = Path(options.model_base_path)
    else:
        path = Path(os.environ.get("MODEL_BASE_PATH") or "/models", name)
    if "://" in str(options.model_base_path):
        raise TorchmarError(f"{options.model_base_path} is not a folder of this machine", hint="mount it, or copy it")
    return BasePath(name=name, path=path.absolute())


def _model_config_file(file: Path) -> tuple[BasePath, ...]:
    """Return the models of a ModelServerConfig in protobuf's text format.

    Raises:
        PropertiesError: the file cannot be read, or is no ModelServerConfig.
    """
    from google.protobuf import text_format

    from torchmar.grpc.wire.tensorflow_serving_pb2 import ModelConfig, ModelServerConfig

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PropertiesError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        # Further fields, such as model_type and logging_config, concern TensorFlow.
        config = text_format.Parse(text, ModelServerConfig(), allow_unknown_field=True)
    except text_format.ParseError as error:
        hint = 'model_config_list { config { name: "clinic" base_path: "/models/clinic" } }'
        raise PropertiesError(f"{file} is not a ModelServerConfig: {error}", hint=hint) from None

    def base_path(model: ModelConfig) -> BasePath:
        if not model.name or not model.base_path:
            raise PropertiesError(f"{file}: a config has no {'base_path' if model.name else 'name'}")
        policy, choice = VersionPolicy(), model.model_version_policy.WhichOneof("policy_choice")
        if choice == "all":
            policy = VersionPolicy(latest=0)
        elif choice == "specific":
            policy = VersionPolicy(versions=tuple(map(str, model.model_version_policy.specific.versions)))
        elif choice == "latest":
            policy = VersionPolicy(latest=model.model_version_policy.latest.num_versions or 1)
        labels = {label: str(version) for label, version in model.version_labels.items()}
        return BasePath(name=model.name, path=Path(model.base_path).absolute(), policy=policy, labels=labels)

    models = tuple(map(base_path, config.model_config_list.config))
    if not models:
        raise PropertiesError(f"{file} names no model")
    return models


def _config(file: str | None) -> dict[str, str]:
    return dict(properties.read(Path(file)).values) if file else {}


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="torchmar-tfserving",
        allow_abbrev=False,
        description="Serve archives as TensorFlow Serving serves SavedModels, with its flags, until SIGTERM or Ctrl-C.",
        epilog=f"Accepted without effect: {', '.join(f'--{name}' for name in _IGNORED)}.",
    )
    add = parser.add_argument
    add("--port", type=int, default=_GRPC_PORT, help="the port of gRPC; default: %(default)s")
    add("--rest_api_port", type=int, default=_REST_PORT, help="the port of REST; default: %(default)s")
    add(
        "--host",
        default=os.environ.get("TORCHMAR_HOST") or "127.0.0.1",
        help="the host of both ports; default: TORCHMAR_HOST, or 127.0.0.1; 0.0.0.0 in a container",
    )
    add("--model_name", help="the name of the only model; default: MODEL_NAME, or model")
    add(
        "--model_base_path",
        help="the folder of its versions; default: MODEL_BASE_PATH/MODEL_NAME, or /models/MODEL_NAME",
    )
    add("--model_config_file", help="a ModelServerConfig with several models, in place of the only model")
    add(
        "--file_system_poll_wait_seconds",
        type=int,
        default=1,
        metavar="SECONDS",
        help="the time between two searches of the folders; 0: one search at the start; default: %(default)s",
    )
    add(
        "--rest_api_enable_cors_support",
        type=_flag,
        nargs="?",
        const=True,
        default=False,
        metavar="BOOL",
        help="let pages of any origin call the REST API",
    )
    add("--config", metavar="FILE", help="a config.properties with further keys")
    add(
        "--run-folder",
        metavar="FOLDER",
        help="the folder for logs and extracted archives; default: TORCHMAR_RUN_FOLDER, or .torchmar",
    )
    add("--version", action="store_true", help="print the version of TensorFlow Serving whose flags these are")
    for name in _IGNORED:
        add(f"--{name}", nargs="?", const="true", help=argparse.SUPPRESS)
    return parser


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() in ("true", "1")


if __name__ == "__main__":
    main()
