"""torchmar export kserve: a runtime and a service of KServe, and the folder that the service reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from torchmar.cli.exporting.files import OutputFile, copy_file, make_folder, write
from torchmar.cli.exporting.replicas import (
    Cpu,
    DeploymentFile,
    GpuCount,
    MaxReplicas,
    Memory,
    Models,
    Namespace,
    Queue,
    Replicas,
    ServiceAccount,
    check_names,
    check_replicas,
    resources,
)
from torchmar.cli.options import Config
from torchmar.cli.terminal import err
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.exporting.kserve import QueueScaling

_RUNTIME, _SERVICE = "Runtime", "Service"
_URI = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)


def kserve(
    image: Annotated[
        str | None,
        typer.Option(
            help="The image, made by torchmar export docker; writes the runtime.",
            show_default=False,
            rich_help_panel=_RUNTIME,
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--runtime", help="The name of the runtime.", rich_help_panel=_RUNTIME)
    ] = "torchmar",
    auto_select: Annotated[
        bool,
        typer.Option(
            "--auto-select",
            help="Serve InferenceServices that name no runtime, too, in place of TorchServe's.",
            rich_help_panel=_RUNTIME,
        ),
    ] = False,
    only_namespace: Annotated[
        bool,
        typer.Option(
            "--only-namespace", help="A ServingRuntime of --namespace, not of the cluster.", rich_help_panel=_RUNTIME
        ),
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="The models' storageUri: s3://..., gs://..., pvc://...; writes the service.",
            show_default=False,
            rich_help_panel=_SERVICE,
        ),
    ] = None,
    service: Annotated[
        str, typer.Option("--service", metavar="NAME", help="The name of the service.", rich_help_panel=_SERVICE)
    ] = "models",
    deployment: DeploymentFile = None,
    layout: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the folder for storageUri: config/ and model-store/ with the models of --deployment.",
            show_default=False,
            rich_help_panel=_SERVICE,
        ),
    ] = None,
    config: Config = None,
    protocol: Annotated[
        Literal["v1", "v2", "grpc-v2"], typer.Option(help="The protocol of the clients.", rich_help_panel=_SERVICE)
    ] = "v2",
    canary: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="The storageUri of other models, for a part of the requests.",
            show_default=False,
            rich_help_panel=_SERVICE,
        ),
    ] = None,
    canary_percent: Annotated[
        int, typer.Option(min=0, max=100, help="The part of the requests, in percent.", rich_help_panel=_SERVICE)
    ] = 10,
    namespace: Namespace = None,
    replicas: Replicas = 1,
    max_replicas: MaxReplicas = 4,
    queue: Queue = None,
    prometheus: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The address of Prometheus, from which KEDA gets the time of --queue.",
            show_default=False,
        ),
    ] = None,
    cpu: Cpu = None,
    memory: Memory = None,
    gpus: GpuCount = None,
    service_account: ServiceAccount = None,
    output: OutputFile = None,
) -> None:
    """Write a serving runtime of KServe, an InferenceService, or both.

    With --image, writes the runtime, which serves the same models and clients as
    KServe's TorchServe runtime. With --storage, a service for it. --layout writes the
    folder for --storage.
    """
    from torchmar.exporting import manifests
    from torchmar.exporting.kserve import (
        Canary,
        Runtime,
        Service,
        inference_service,
        runtime,
    )

    if not any((image, storage, layout)):
        raise typer.BadParameter("give --image for a runtime, --storage for a service, or both", param_hint="--image")
    if layout and not deployment:
        raise typer.BadParameter("the models are those of --deployment FILE", param_hint="--layout")
    if only_namespace and not namespace:
        raise typer.BadParameter("name the namespace: --namespace", param_hint="--only-namespace")
    if bool(queue) != bool(prometheus):
        raise typer.BadParameter("--queue and --prometheus belong together", param_hint="--queue")
    _check_uris({"--storage": storage, "--canary": canary, "--prometheus": prometheus})
    if canary and not storage:
        raise typer.BadParameter("a canary needs the service: --storage", param_hint="--canary")
    check_replicas(replicas, max_replicas)
    names = {"--runtime": name, "--service": service, "--namespace": namespace, "--service-account": service_account}
    check_names(names, service=40)
    models = Models(deployment) if deployment else None
    pod_resources, scope = resources(models, cpu, memory, gpus), namespace or ""
    objects = []
    if image:
        serving_runtime = Runtime(
            image=manifests.check_image(image),
            name=name,
            auto_select=auto_select,
            namespace=scope if only_namespace else "",
            resources=pod_resources,
        )
        objects.append(runtime(serving_runtime))
    if storage:
        inference = Service(
            name=service,
            storage=storage,
            runtime=name,
            namespace=scope,
            protocol=protocol,
            resources=pod_resources,
            min_replicas=replicas,
            max_replicas=max_replicas,
            scaling=_scaling(queue, prometheus),
            canary=Canary(storage=canary, percent=canary_percent) if canary else None,
            service_account=service_account or "",
        )
        objects.append(inference_service(inference))
    if layout and models:
        _write_layout(layout, models, config)
    if objects:
        write({output: manifests.show(objects)})


def _check_uris(options: Mapping[str, str | None]) -> None:
    """Raise TorchmarError if the value of an option is no URI."""
    for option, uri in options.items():
        if uri and not _URI.fullmatch(uri):
            raise TorchmarError(f"{option} {uri}: no URI", hint="write it like s3://bucket/models")


def _scaling(queue: str | None, prometheus: str | None) -> QueueScaling | None:
    from torchmar.exporting.kserve import QueueScaling
    from torchmar.tuning.target import parse_duration

    return QueueScaling(prometheus=prometheus, wait_ms=parse_duration(queue) * 1000) if queue and prometheus else None


def _write_layout(folder: Path, models: Models, config: Path | None) -> None:
    """Write the folder for a storage URI."""
    from torchmar import atomic, properties
    from torchmar.platforms.kserve import MODEL_STORE

    base = {**properties.read_or_default(config).values, "enable_envvars_config": "true"}
    values = {**models.configuration(base), "model_store": MODEL_STORE}
    store = folder / Path(MODEL_STORE).name
    make_folder(folder / "config")
    make_folder(store)
    for archive in models.chosen_archives():
        if archive.is_dir():
            raise TorchmarError(
                f"{archive} is a folder, which KServe's runtimes do not find", hint="torchmar build packs it"
            )
        copy_file(archive, store / archive.name)
    atomic.write_text(properties.show(values), folder / "config" / "config.properties")
    err.print(f"wrote {folder}; upload it to the storage", markup=False)
