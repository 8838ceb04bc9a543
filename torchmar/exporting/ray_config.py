"""The check of a config.yaml of Ray Serve for errors that Ray ignores: unknown keys, and too few requests at once.

The keys are those of ``ray.serve.schema.ServeDeploySchema`` in Ray 2.60, whose models ignore all others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from torchmar import strict_yaml
from torchmar.errors import Problem, RecipeError
from torchmar.strict_yaml import Document, unknown


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class LoggingConfig(_Section):
    """The fields of ``LoggingConfig``."""

    encoding: Any = None
    log_level: Any = None
    logs_dir: Any = None
    enable_access_log: Any = None
    additional_log_standard_attrs: Any = None


class HttpOptions(_Section):
    """The fields of ``HTTPOptionsSchema``."""

    host: Any = None
    port: Any = None
    root_path: Any = None
    request_timeout_s: Any = None
    keep_alive_timeout_s: Any = None
    ssl_keyfile: Any = None
    ssl_certfile: Any = None
    ssl_keyfile_password: Any = None
    ssl_ca_certs: Any = None


class GrpcOptions(_Section):
    """The fields of ``gRPCOptionsSchema``."""

    port: Any = None
    grpc_servicer_functions: Any = None
    request_timeout_s: Any = None
    enable_reflection: Any = None


class RayActorOptions(_Section):
    """The fields of ``RayActorOptionsSchema``."""

    runtime_env: Any = None
    num_cpus: Any = None
    num_gpus: Any = None
    memory: Any = None
    resources: Any = None
    accelerator_type: Any = None
    label_selector: Any = None
    fallback_strategy: Any = None


class AutoscalingConfig(_Section):
    """The fields of ``AutoscalingConfig``."""

    min_replicas: Any = None
    max_replicas: Any = None
    initial_replicas: Any = None
    target_ongoing_requests: Any = None
    metrics_interval_s: Any = None
    look_back_period_s: Any = None
    smoothing_factor: Any = None
    upscale_smoothing_factor: Any = None
    downscale_smoothing_factor: Any = None
    upscaling_factor: Any = None
    downscaling_factor: Any = None
    downscale_delay_s: Any = None
    downscale_to_zero_delay_s: Any = None
    upscale_delay_s: Any = None
    aggregation_function: Any = None
    policy: Any = None


class DeploymentSection(_Section):
    """The fields of ``DeploymentSchema``."""

    name: str
    num_replicas: Any = None
    max_ongoing_requests: int | None = None
    max_queued_requests: Any = None
    backpressure_config: Any = None
    user_config: Any = None
    autoscaling_config: AutoscalingConfig | None = None
    graceful_shutdown_wait_loop_s: Any = None
    graceful_shutdown_timeout_s: Any = None
    health_check_period_s: Any = None
    health_check_timeout_s: Any = None
    ray_actor_options: RayActorOptions | None = None
    placement_group_bundles: Any = None
    placement_group_strategy: Any = None
    placement_group_bundle_label_selector: Any = None
    max_replicas_per_node: Any = None
    logging_config: LoggingConfig | None = None
    request_router_config: Any = None
    gang_scheduling_config: Any = None
    deployment_actors: Any = None
    rolling_update_percentage: Any = None
    max_surge_percent: Any = None


class ApplicationSection(_Section):
    """The fields of ``ServeApplicationSchema``."""

    name: Any = None
    route_prefix: Any = None
    import_path: str
    runtime_env: Any = None
    host: Any = None
    port: Any = None
    deployments: list[DeploymentSection] = []
    autoscaling_policy: Any = None
    args: Any = None
    logging_config: LoggingConfig | None = None
    external_scaler_enabled: Any = None


class ServeConfig(_Section):
    """The fields of ``ServeDeploySchema``."""

    proxy_location: Any = None
    http_options: HttpOptions | None = None
    grpc_options: GrpcOptions | None = None
    logging_config: LoggingConfig | None = None
    tracing_config: Any = None
    controller_options: Any = None
    target_capacity: Any = None
    applications: list[ApplicationSection]


_DEFAULT_ONGOING = 5  # requests of a replica at once, if max_ongoing_requests is not set


def read(file: Path) -> ServeConfig:
    """Read a config.yaml of Ray Serve.

    Raises:
        RecipeError: with all problems: the file is missing or no YAML, it has keys that Ray ignores, or it has a
            deployment that does not exist in the application or cannot fill its batches.
    """
    return parse(strict_yaml.read(file, "torchmar export ray writes one"), str(file))


def parse(text: str, file: str = "config.yaml") -> ServeConfig:
    """Return the configuration in ``text``; raises the errors of `read`."""
    document = strict_yaml.parse(text, file, "it is no mapping of keys, such as applications:")
    problems = document.repeated()
    config = None
    try:
        config = ServeConfig.model_validate(document.data)
    except ValidationError as error:
        problems += [_problem(dict(detail), document) for detail in error.errors()]
    else:
        for index, application in enumerate(config.applications):
            problems += _disagreements(application, index, document)
    if problems or config is None:
        raise RecipeError(problems)
    return config


def _disagreements(application: ApplicationSection, index: int, document: Document) -> list[Problem]:
    """Return the problems of an application from torchmar that no longer fits its archives."""
    models = application.args.get("models") if isinstance(application.args, dict) else None
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        return []  # an application of another program
    sizes = {f"{model.get('name')}-{model.get('version')}": model.get("batch_size", 1) for model in models}
    problems = []
    for number, deployment in enumerate(application.deployments):
        place: list[str | int] = ["applications", index, "deployments", number]
        size = sizes.get(deployment.name)
        ongoing = _DEFAULT_ONGOING if deployment.max_ongoing_requests is None else deployment.max_ongoing_requests
        if size is None and deployment.name != "Ingress":
            message = f"args has no model called {deployment.name!r}; it has {', '.join(sizes)}"
            problems.append(document.problem([*place, "name"], message))
        elif isinstance(size, int) and ongoing < 2 * size:
            message = f"with {ongoing} requests at once, batches of {size} are not filled while one runs"
            problems.append(
                document.problem(
                    [*place, "max_ongoing_requests"], message, f"write {2 * size} or more; Ray's default is 5"
                )
            )
    return problems


def _problem(detail: dict[str, Any], document: Document) -> Problem:
    location = list(detail["loc"])
    message = str(detail["msg"])
    if detail["type"] == "extra_forbidden":
        key = str(location.pop())
        message = f"{unknown(key, _section(location))}; Ray Serve ignores it without a message"
        return document.problem([*location, key], message)
    if detail["type"] == "missing":
        message = "this key is required"
    return document.problem(location, message[:1].lower() + message[1:])


def _section(location: list[Any]) -> type[BaseModel]:
    """Return the part of the schema at a location."""
    section: type[BaseModel] = ServeConfig
    for name in (part for part in location if isinstance(part, str)):
        section = _SECTIONS.get(name, section)
    return section


_SECTIONS: dict[str, type[BaseModel]] = {
    "http_options": HttpOptions,
    "grpc_options": GrpcOptions,
    "logging_config": LoggingConfig,
    "applications": ApplicationSection,
    "deployments": DeploymentSection,
    "ray_actor_options": RayActorOptions,
    "autoscaling_config": AutoscalingConfig,
}
