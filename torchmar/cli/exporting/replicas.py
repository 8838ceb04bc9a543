"""Options of the exports for clusters: replicas, resources, and the deployment.yaml whose models they serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar.cli.terminal import err
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.deployment.desired import Deployment
    from torchmar.deployment.store_index import StoredArchive, StoreIndex
    from torchmar.exporting.kubernetes import Cluster
    from torchmar.exporting.pods import Resources
    from torchmar.properties import Properties

Namespace = Annotated[
    str | None, typer.Option(help="The namespace of the objects; default: kubectl's.", show_default=False)
]
DeploymentFile = Annotated[
    Path | None,
    typer.Option(
        "--deployment",
        metavar="FILE",
        help="Serve the models of a deployment.yaml, with its workers.",
        show_default=False,
    ),
]
Replicas = Annotated[int, typer.Option(min=1, help="The smallest number of replicas.")]
MaxReplicas = Annotated[int, typer.Option(min=1, help="The largest number of replicas.")]
Queue = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Add replicas, too, when requests wait longer for a worker, on average: 100ms.",
        show_default=False,
    ),
]
ServiceAccount = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The service account whose credentials fetch archives.", show_default=False),
]
Claim = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The PersistentVolumeClaim with the archives; default: the image has them.",
        show_default=False,
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMESPACE",
        help="Let pods of another namespace send requests, such as the Ingress controller's. May be repeated.",
        show_default=False,
    ),
]
Cpu = Annotated[
    str | None,
    typer.Option(metavar="CORES", help="The cores of each replica; default: one for each worker.", show_default=False),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="The memory of each replica; default: an estimate by the sizes of the archives.",
        show_default=False,
    ),
]
GpuCount = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=0,
        metavar="N",
        help="The GPUs of each replica; default: the number that the workers need.",
        show_default=False,
    ),
]


class Models:
    """The models of a deployment.yaml.

    Attributes:
        deployment: the desired state.
        archives: archives by model and version.
        index: the model store.
    """

    def __init__(self, file: Path) -> None:
        from torchmar.deployment import context, desired, planning

        self.file = file
        self.deployment: Deployment = desired.read(file)
        server = context.resolve(self.deployment.server, file.parent)
        archives = planning.archives(self.deployment, server.folder, server.model_store)
        self.index: StoreIndex = archives[0]
        self.archives: dict[tuple[str, str], StoredArchive | None] = archives[1]

    def configuration(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return the keys of a configuration with these models.

        Raises:
            TorchmarError: the store has no archive for a version of the deployment.
        """
        from torchmar.deployment.startup import startup_values

        return startup_values(self.deployment, self.archives, self.index, base)

    def chosen_archives(self) -> list[Path]:
        """Return the archives of `configuration`."""
        from torchmar.deployment.startup import chosen_archives

        return [stored.path for stored in chosen_archives(self.deployment, self.archives, self.index)]

    def resources(self) -> Resources:
        """Return the resources of one server with all workers.

        Raises:
            TorchmarError: an archive is missing, or the workers do not fit on the GPUs.
        """
        from torchmar.exporting.deployed_resources import resources

        return resources(self.deployment, self.archives, self.index, self.deployment.server.gpus or ())


def resources(models: Models | None, cpu: str | None, memory: str | None, gpus: int | None) -> Resources:
    """Return the resources of a replica: those of the options, or else of its models, or else the defaults.

    Raises:
        TorchmarError: an option is no quantity, or the workers do not fit on the GPUs.
    """
    from torchmar.exporting.manifests import check_quantity
    from torchmar.exporting.pods import Resources

    defaults = models.resources() if models else Resources()
    return Resources(
        cpu=check_quantity(cpu, "--cpu") if cpu else defaults.cpu,
        memory=check_quantity(memory, "--memory") if memory else defaults.memory,
        gpus=defaults.gpus if gpus is None else gpus,
    )


def configured(config: Path | None, models: Models | None) -> Properties:
    """Return a configuration, with the models of a deployment.yaml if there is one."""
    from torchmar import properties

    configuration = properties.read_or_default(config)
    return replace(configuration, values=models.configuration(configuration.values)) if models else configuration


def cluster(
    image: str,
    name: str,
    namespace: str | None,
    pod_resources: Resources,
    claim: str | None,
    service_account: str | None,
    allow: Sequence[str] | None,
) -> Cluster:
    """Return the values of the options of several exports, with the default number of replicas."""
    from torchmar.exporting.kubernetes import Cluster

    return Cluster(
        image=image,
        name=name,
        namespace=namespace or "",
        resources=pod_resources,
        claim=claim or "",
        service_account=service_account or "",
        clients=tuple(dict.fromkeys(allow or ())),
    )


def check_names(names: Mapping[str, str | None], allow: Sequence[str] | None = None, **longest: int) -> None:
    """Check the names of objects in options.

    Args:
        names: options with their values; None: an option is not given.
        allow: the values of ``--allow``.
        longest: largest number of characters of an option's value to which a suffix is added; other values may have 63.

    Raises:
        TorchmarError: Kubernetes would reject a name.
    """
    from torchmar.exporting.manifests import check_name

    for option, name in [*names.items(), *(("--allow", namespace) for namespace in allow or ())]:
        if name:
            check_name(name, option, longest=longest.get(option.removeprefix("--"), 63))


def print_needs(configuration: Properties) -> None:
    """Print the files of a configuration that the image must have, and a note if tokens are off."""
    from torchmar.exporting.kubernetes import has_tokens
    from torchmar.server.config.keys import PATH_KEYS

    for key in PATH_KEYS:
        file = configuration.values.get(key)
        if file and not (key.endswith("_token_file") and has_tokens(configuration)):
            err.print(f"{key}={file}: the image must have this file", markup=False)
    if not has_tokens(configuration):
        err.print("tokens are off: every pod that reaches the port can use the models", markup=False)


def check_replicas(least: int, most: int) -> None:
    """Raise TorchmarError if the smallest number of replicas is above the largest."""
    if least > most:
        raise TorchmarError(
            f"--replicas {least} is more than --max-replicas {most}", hint=f"--max-replicas {least} scales nothing"
        )
