"""torchmar export ray-cluster: a RayService of KubeRay, or a cluster file for machines, for the engine ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

import torchmar
from torchmar.cli.exporting.files import OutputFile, Package, write
from torchmar.cli.exporting.replicas import (
    Allow,
    Claim,
    Cpu,
    DeploymentFile,
    GpuCount,
    Memory,
    Models,
    Namespace,
    ServiceAccount,
    check_names,
    cluster,
    configured,
    print_needs,
    resources,
)
from torchmar.cli.options import Config, ModelStore, in_panel
from torchmar.errors import TorchmarError

_KUBERAY, _MACHINES = "Kubernetes", "Machines"


def ray_cluster(
    image: Annotated[
        str | None,
        typer.Option(
            help="The image, made by torchmar export docker --engine ray; writes a RayService.",
            show_default=False,
            rich_help_panel=_KUBERAY,
        ),
    ] = None,
    nodes: Annotated[
        int, typer.Option(min=1, help="The number of nodes in addition to the head.", rich_help_panel=_KUBERAY)
    ] = 2,
    servers: Annotated[
        int,
        typer.Option(
            min=1,
            help="The number of nodes with a server; all serve the same models.",
            rich_help_panel=_KUBERAY,
        ),
    ] = 1,
    namespace: Annotated[str | None, in_panel(Namespace, _KUBERAY)] = None,
    cpu: Annotated[str | None, in_panel(Cpu, _KUBERAY, "The cores of each node; default: one for each worker.")] = None,
    memory: Annotated[
        str | None,
        in_panel(Memory, _KUBERAY, "The memory of each node; default: an estimate by the sizes of the archives."),
    ] = None,
    gpus: Annotated[
        int | None, in_panel(GpuCount, _KUBERAY, "The GPUs of each node; default: the number that the workers need.")
    ] = None,
    claim: Annotated[str | None, in_panel(Claim, _KUBERAY)] = None,
    service_account: Annotated[str | None, in_panel(ServiceAccount, _KUBERAY)] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A Redis that keeps the state of the head: redis://redis:6379.",
            show_default=False,
            rich_help_panel=_KUBERAY,
        ),
    ] = None,
    redis_secret: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The Secret with its password, under the key password.",
            show_default=False,
            rich_help_panel=_KUBERAY,
        ),
    ] = None,
    allow: Annotated[list[str] | None, in_panel(Allow, _KUBERAY)] = None,
    deployment: Annotated[Path | None, in_panel(DeploymentFile, _KUBERAY)] = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="The machine of the head and of the server; writes a cluster file for ray up.",
            show_default=False,
            rich_help_panel=_MACHINES,
        ),
    ] = None,
    workers: Annotated[
        list[str] | None,
        typer.Option(
            "--worker",
            metavar="HOST",
            help="Another machine. May be repeated.",
            show_default=False,
            rich_help_panel=_MACHINES,
        ),
    ] = None,
    user: Annotated[str, typer.Option(help="The user of SSH.", rich_help_panel=_MACHINES)] = "ubuntu",
    key: Annotated[
        Path | None,
        typer.Option(help="The private key of SSH.", show_default=False, rich_help_panel=_MACHINES),
    ] = None,
    model_store: Annotated[Path | None, in_panel(ModelStore, _MACHINES)] = None,
    package: Annotated[
        Path | None, in_panel(Package, _MACHINES, "A wheel of torchmar; default: the release on PyPI.")
    ] = None,
    name: Annotated[str, typer.Option(help="The name of the objects, or of the cluster.")] = "torchmar",
    config: Config = None,
    output: OutputFile = None,
) -> None:
    """Write a cluster for torchmar serve --engine ray.

    With --image, a RayService of KubeRay, whose application is the server. With
    --head, a cluster file, with which ray up starts Ray and the server on
    machines over SSH.
    """
    from torchmar.exporting import manifests, ray_cluster

    if bool(image) == bool(head):
        raise typer.BadParameter("give --image for KubeRay, or --head for machines", param_hint="--image")
    if head:
        flags: dict[str, object] = {"--namespace": namespace, "--cpu": cpu, "--memory": memory, "--gpus": gpus}
        flags |= {"--claim": claim, "--service-account": service_account, "--allow": allow, "--deployment": deployment}
        _refuse({**flags, "--redis": redis, "--redis-secret": redis_secret}, "only a RayService has it: --image")
        local = configured(config, None)
        machines = ray_cluster.Machines(
            head=head,
            workers=tuple(workers or ()),
            name=manifests.check_name(name, "--name"),
            user=user,
            key=str(key) if key else "",
            config=_existing(local.file),
            model_store=_existing(model_store or Path(local.get("model_store") or "model_store")),
            package=_existing(package),
            version=torchmar.__version__,
        )
        write({output: ray_cluster.show_cluster_file(machines, str(output or "FILE"))})
        return
    of_machines = {"--worker": workers, "--package": package, "--model-store": model_store, "--key": key}
    _refuse(of_machines, "only machines have it: --head")
    names = {"--name": name, "--namespace": namespace, "--claim": claim, "--service-account": service_account}
    check_names({**names, "--redis-secret": redis_secret}, allow, name=40)
    _check_redis(redis, redis_secret)
    models = Models(deployment) if deployment else None
    configuration = configured(config, models)
    image, pod_resources = manifests.check_image(str(image)), resources(models, cpu, memory, gpus)
    head_and_nodes = ray_cluster.RayPods(
        pods=cluster(image, name, namespace, pod_resources, claim, service_account, allow),
        nodes=nodes,
        servers=servers,
        redis=redis or "",
        redis_secret=redis_secret or "",
    )
    objects = ray_cluster.objects(head_and_nodes, configuration)
    write({output: manifests.show(objects, ray_cluster.comment(head_and_nodes, configuration))})
    print_needs(configuration)


def _refuse(options: Mapping[str, object], reason: str) -> None:
    """Raise typer.BadParameter if one of the options is given."""
    if names := [option for option, value in options.items() if value]:
        raise typer.BadParameter(reason, param_hint=names[0])


def _check_redis(redis: str | None, secret: str | None) -> None:
    if redis and not redis.startswith(("redis://", "rediss://")):
        raise TorchmarError(f"--redis {redis}: no address of a Redis", hint="write it like redis://redis:6379")
    if secret and not redis:
        raise typer.BadParameter("name the Redis: --redis", param_hint="--redis-secret")


def _existing(path: Path | None) -> str:
    """Return the absolute path of a file or folder; empty: none is given."""
    return str(path.resolve()) if path and path.exists() else ""
