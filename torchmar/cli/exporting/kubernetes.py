"""torchmar export kubernetes: objects for replicas of a server."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from torchmar.cli.exporting.files import OutputFile, write
from torchmar.cli.exporting.replicas import (
    Allow,
    Claim,
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
    cluster,
    configured,
    print_needs,
    resources,
)
from torchmar.cli.options import Config


def kubernetes(
    image: Annotated[str, typer.Option(help="The image, made by torchmar export docker.", show_default=False)],
    config: Config = None,
    deployment: DeploymentFile = None,
    name: Annotated[str, typer.Option(help="The name of the objects.")] = "torchmar",
    namespace: Namespace = None,
    replicas: Replicas = 2,
    max_replicas: MaxReplicas = 4,
    queue: Queue = None,
    cpu: Cpu = None,
    memory: Memory = None,
    gpus: GpuCount = None,
    claim: Claim = None,
    service_account: ServiceAccount = None,
    allow: Allow = None,
    egress: Annotated[
        bool, typer.Option("--egress", help="Let the server open connections, for handlers that need them.")
    ] = False,
    prometheus: Annotated[
        str, typer.Option("--metrics-from", metavar="NAMESPACE", help="The namespace that reads the metrics.")
    ] = "monitoring",
    service_monitor: Annotated[
        bool, typer.Option("--service-monitor", help="Add a ServiceMonitor of the Prometheus Operator.")
    ] = False,
    output: OutputFile = None,
) -> None:
    """Write the objects of Kubernetes for replicas of a server.

    Deployment, Service, ConfigMap, NetworkPolicy, PodDisruptionBudget and
    HorizontalPodAutoscaler. The head of the file contains the command that creates
    the tokens, which the file does not contain.
    """
    from torchmar.exporting import manifests
    from torchmar.exporting.kubernetes import comment, objects
    from torchmar.tuning.target import parse_duration

    check_replicas(replicas, max_replicas)
    names = {"--name": name, "--namespace": namespace, "--claim": claim, "--service-account": service_account}
    check_names({**names, "--metrics-from": prometheus}, allow, name=50)
    models = Models(deployment) if deployment else None
    configuration = configured(config, models)
    image, pod_resources = manifests.check_image(image), resources(models, cpu, memory, gpus)
    pods = replace(
        cluster(image, name, namespace, pod_resources, claim, service_account, allow),
        min_replicas=replicas,
        max_replicas=max_replicas,
        queue_wait=parse_duration(queue) if queue else 0.0,
        egress=egress,
        prometheus=prometheus,
        service_monitor=service_monitor,
    )
    write({output: manifests.show(objects(pods, configuration), comment(pods, configuration))})
    print_needs(configuration)
