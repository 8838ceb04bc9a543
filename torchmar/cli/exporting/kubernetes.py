"""torchmar export kubernetes: objects for replicas of a server."""

from __future__ import annotations

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
        bool, typer.Option("--egress", help="Let the server open connections, which its handlers need.")
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
    HorizontalPodAutoscaler. The head of the file has the command that makes
    the tokens, which the file does not contain.
    """
    from torchmar.exporting import manifests
    from torchmar.exporting.kubernetes import Cluster, comment, objects
    from torchmar.tuning.target import parse_duration

    check_replicas(replicas, max_replicas)
    names = {"--name": name, "--namespace": namespace, "--claim": claim, "--service-account": service_account}
    check_names([*names.items(), ("--metrics-from", prometheus), *(("--allow", each) for each in allow or ())], name=50)
    models = Models(deployment) if deployment else None
    configuration = configured(config, models)
    cluster = Cluster(
        image=manifests.check_image(image),
        name=name,
        namespace=namespace or "",
        resources=resources(models, cpu, memory, gpus),
        min_replicas=replicas,
        max_replicas=max_replicas,
        queue_wait=parse_duration(queue) if queue else 0.0,
        claim=claim or "",
        service_account=service_account or "",
        clients=tuple(dict.fromkeys(allow or ())),
        egress=egress,
        prometheus=prometheus,
        service_monitor=service_monitor,
    )
    write({output: manifests.show(objects(cluster, configuration), comment(cluster, configuration))})
    print_needs(configuration)
