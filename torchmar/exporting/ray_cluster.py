"""A RayService of KubeRay, and a cluster file of Ray for existing machines, for the engine ``ray``.

KubeRay 1.5 and later, which supports Ray's tokens: https://docs.ray.io/en/latest/cluster/kubernetes/. The cluster file:
https://docs.ray.io/en/latest/cluster/vms/references/ray-cluster-configuration.html

The only application of the RayService is the front (`torchmar.engines.ray_front`), which deploys the models itself.
KubeRay sends its requests to the front instead of a proxy of Ray Serve: the front listens on the port ``serve``, and a
pod without a front is not ready.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from torchmar.errors import TorchmarError
from torchmar.exporting import kubernetes, pods, ray_config
from torchmar.exporting.kubernetes import Cluster, PodConfiguration
from torchmar.exporting.manifests import Manifest
from torchmar.properties import Properties

RAY_VERSION = "2.60.0"  # the oldest version for the image; KubeRay chooses its probes by it
#: The default ports of Ray.
GCS_PORT, _DASHBOARD_PORT, _CLIENT_PORT = 6379, 8265, 10001
_RAY_METRICS_PORT = 8090  # KubeRay's own default is 8080, the port of the front
#: A resource that each node with room for a front has exactly once.
FRONT = "torchmar_front"
_HEALTH_PATH = "/-/healthz"  # KubeRay requests this path
_OPERATOR = "app.kubernetes.io/name"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:]+")
_USER = re.compile(r"[a-z_][a-z0-9_-]*")
_HOME = "~/torchmar"


@dataclass(frozen=True, kw_only=True)
class RayPods:
    """The pods of a RayService.

    Attributes:
        pods: image, name, namespace, resources of a node, volume, network.
        nodes: number of nodes besides the head.
        servers: number of these nodes that run a front.
        redis: address of a Redis for the head's state, ``redis://HOST:PORT``; empty: there is none.
        redis_secret: Secret with its password, under the key ``password``; empty: it has no password.
    """

    pods: Cluster
    nodes: int = 2
    servers: int = 1
    redis: str = ""
    redis_secret: str = ""


def objects(cluster: RayPods, config: Properties) -> list[Manifest]:
    """Return the objects, in an order in which they can be created.

    Args:
        cluster: the service.
        config: configuration of the user.

    Raises:
        TorchmarError: an address is a Unix socket or encrypted, or there are more servers than nodes.
        PropertiesError: an address is invalid.
    """
    if cluster.servers > cluster.nodes:
        raise TorchmarError(
            f"{cluster.servers} servers need as many nodes, and there are {cluster.nodes}", hint="a node has one server"
        )
    # The front determines the address of its own cluster.
    configured = kubernetes.configuration(config, {"torchmar_health_path": _HEALTH_PATH, "torchmar_ray_address": ""})
    return [
        kubernetes.config_map(cluster.pods, configured),
        _ray_service(cluster, configured),
        # The Service of the fronts, because KubeRay's has only the port ``serve``.
        kubernetes.service(cluster.pods, configured.ports, configured.ports),
        _network_policy(cluster, configured.ports),
        *kubernetes.service_monitors(cluster.pods, configured),
    ]


def comment(cluster: RayPods, config: Properties) -> str:
    """Return the comment at the head of the file: further steps, and how to reach the server."""
    kubectl = kubernetes.kubectl(cluster.pods)
    name = cluster.pods.name
    lines = [
        f"A torchmar server on a cluster of Ray: {kubectl} apply -f FILE",
        "KubeRay 1.5 or later has to be installed. The image is that of torchmar export docker --engine ray.",
        *kubernetes.tokens_comment(cluster.pods, config),
    ]
    if cluster.pods.claim:
        lines += ["", f"The archives are in the PersistentVolumeClaim {cluster.pods.claim}, which all nodes mount."]
    lines += [
        "",
        f"Clients send requests to the service {name}. Management stays in the pods of the front:",
        f"  {kubectl} exec POD -- torchmar models",
    ]
    return "\n".join(lines)


def serve_config(servers: int) -> str:
    """Return the configuration of Ray Serve: one application, with a front on each of ``servers`` nodes."""
    front = {
        "name": "Front",
        "num_replicas": servers,
        "max_ongoing_requests": 1,  # clients send requests to the front's own port
        "graceful_shutdown_timeout_s": pods.GRACE_SECONDS,
        "health_check_period_s": 5,
        "ray_actor_options": {"num_cpus": 0, "resources": {FRONT: 1}},
    }
    application = {
        "name": "front",
        "route_prefix": None,
        "import_path": "torchmar.engines.ray_front:app",
        "args": {
            "config": kubernetes.CONFIG,
            "model_store": kubernetes.MODEL_STORE,
            "run_folder": pods.RUN_FOLDER,
        },
        "deployments": [front],
    }
    text = yaml.safe_dump({"proxy_location": "Disabled", "applications": [application]}, sort_keys=False)
    ray_config.parse(text)
    return text


def _ray_service(cluster: RayPods, configured: PodConfiguration) -> Manifest:
    fault_tolerance = None
    if cluster.redis:
        reference = {"valueFrom": {"secretKeyRef": {"name": cluster.redis_secret, "key": "password"}}}
        fault_tolerance = {
            "redisAddress": cluster.redis,
            "redisPassword": reference if cluster.redis_secret else None,
        }
    metrics_port = {"metrics-export-port": str(_RAY_METRICS_PORT)}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": kubernetes.metadata(cluster.pods),
        "spec": {
            "serveConfigV2": serve_config(cluster.servers),
            # A pod of the front is ready when it has loaded the models, even in a new cluster.
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterConfig": {
                "rayVersion": RAY_VERSION,
                "authOptions": {"mode": "token"},
                "gcsFaultToleranceOptions": fault_tolerance,
                "headGroupSpec": {
                    # No replica runs on the head, because the whole cluster depends on it.
                    "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0", **metrics_port},
                    "template": _template(cluster, configured, head=True),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "nodes",
                        "replicas": cluster.nodes,
                        "minReplicas": cluster.nodes,
                        "maxReplicas": cluster.nodes,
                        # KubeRay passes this value to a shell.
                        "rayStartParams": {"resources": f'"{{\\"{FRONT}\\": 1}}"', **metrics_port},
                        "template": _template(cluster, configured, head=False),
                    }
                ],
            },
        },
    }


def _template(cluster: RayPods, configured: PodConfiguration, *, head: bool) -> dict[str, Any]:
    annotations = configured.annotations if head else kubernetes.pod_annotations(cluster.pods, configured)
    volumes, mounts = kubernetes.volumes_and_mounts(cluster.pods, configured.values)
    # KubeRay interprets the names of these two ports.
    by_name = {"serve": configured.ports["http"], "metrics": _RAY_METRICS_PORT}
    if head:
        by_name |= {"gcs-server": GCS_PORT, "dashboard": _DASHBOARD_PORT, "client": _CLIENT_PORT}
    else:
        by_name |= {f"front-{api}": port for api, port in configured.ports.items() if api != "http"}
    container = {
        "name": "ray-head" if head else "ray-worker",
        "image": cluster.pods.image,
        "env": [*pods.environment(0 if head else cluster.pods.resources.gpus), *_ENVIRONMENT],
        "ports": [{"name": name, "containerPort": port} for name, port in by_name.items()],
        # A node without a front is not ready for requests, but it runs replicas.
        "readinessProbe": None
        if head
        else pods.probe(pods.READY, "serve", periodSeconds=5, timeoutSeconds=3, failureThreshold=2),
        "lifecycle": pods.lifecycle(),
        "resources": (pods.Resources() if head else cluster.pods.resources).manifest(),
        "securityContext": pods.container_security(),
        "volumeMounts": mounts,
    }
    role = {} if head else dict(pods.labels(cluster.pods.name))
    return {
        "metadata": {"labels": {_CLUSTER_LABEL: cluster.pods.name, **role}, "annotations": annotations},
        "spec": kubernetes.pod_spec(cluster.pods, container, volumes),
    }


_CLUSTER_LABEL = "torchmar/ray-cluster"  # label of all pods of a cluster, including the head
_ENVIRONMENT = [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]


def _network_policy(cluster: RayPods, ports: Mapping[str, int]) -> Manifest:
    """Let only the own pods and KubeRay's operator reach the ports of Ray, through which code can be run."""
    own_pods = {"podSelector": {"matchLabels": {_CLUSTER_LABEL: cluster.pods.name}}}
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {_OPERATOR: "kuberay-operator"}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": kubernetes.metadata(cluster.pods),
        "spec": {
            "podSelector": {"matchLabels": {_CLUSTER_LABEL: cluster.pods.name}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [own_pods]},
                {"from": [operator], "ports": [{"port": port} for port in (_DASHBOARD_PORT, ports["http"])]},
                *kubernetes.ingress(cluster.pods, ports),
            ],
        },
    }


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Existing machines on which ``ray up`` starts a cluster over SSH.

    Attributes:
        head: host of the head and of the front.
        workers: hosts of the other nodes.
        name: name of the cluster.
        user: user for SSH.
        key: private key for SSH; empty: SSH chooses.
        config: configuration of the user, which is copied to the head; empty: none.
        model_store: folder with the archives, which is copied to the head; empty: none.
        package: wheel of torchmar, which is copied to all machines; empty: install it from the package index.
        version: version of torchmar.
    """

    head: str
    workers: Sequence[str] = field(default_factory=tuple)
    name: str = "torchmar"
    user: str = "ubuntu"
    key: str = ""
    config: str = ""
    model_store: str = ""
    package: str = ""
    version: str = ""


def cluster_file(machines: Machines) -> dict[str, Any]:
    """Return the content of a cluster file.

    Raises:
        TorchmarError: a host, the user or the name is not valid.
    """
    for option, host in (("--head", machines.head), *(("--worker", host) for host in machines.workers)):
        if not _HOST.fullmatch(host):
            raise TorchmarError(f"{option} {host}: no host", hint="write it like 10.0.0.2 or node-2.example.com")
    if repeated := {host for host in machines.workers if [machines.head, *machines.workers].count(host) > 1}:
        raise TorchmarError(f"{min(repeated)} is named twice", hint="each machine is one node of the cluster")
    if not _USER.fullmatch(machines.user):
        raise TorchmarError(f"--user {machines.user}: no name of a user")
    binaries = f"{_HOME}/venv/bin"
    wheel = f"{_HOME}/{machines.package.rpartition('/')[2]}" if machines.package else ""
    package = f"{wheel}[ray]" if wheel else f"'torchmar[ray]=={machines.version}'"
    address = f"[{machines.head}]" if ":" in machines.head else machines.head
    # These variables are set for Ray's processes and their children.
    variables = "export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token"
    stop = f"test ! -e {_HOME}/.torchmar/server.json || {binaries}/torchmar stop --run-folder {_HOME}/.torchmar"
    start = f"ulimit -n 65536; {variables}; {binaries}/ray start"
    serve = [
        f"cd {_HOME} && {variables} && {binaries}/torchmar serve --engine ray --address {address}:{GCS_PORT}",
        "--model-store model_store --detach",
    ]
    return {
        "cluster_name": machines.name,
        "provider": {"type": "local", "head_ip": machines.head, "worker_ips": list(machines.workers)},
        "auth": {"ssh_user": machines.user, **({"ssh_private_key": machines.key} if machines.key else {})},
        "max_workers": len(machines.workers),
        "file_mounts": {
            "~/.ray/auth_token": "~/.ray/auth_token",
            **({f"{_HOME}/config.properties": machines.config} if machines.config else {}),
            **({f"{_HOME}/model_store": machines.model_store} if machines.model_store else {}),
            **({wheel: machines.package} if wheel else {}),
        },
        "setup_commands": [
            "chmod 600 ~/.ray/auth_token",
            f"test -x {binaries}/pip || python3 -m venv {_HOME}/venv",
            f"{binaries}/pip install --quiet {package}",
            f"mkdir -p {_HOME}/model_store",
        ],
        "head_start_ray_commands": [
            stop,
            f"{binaries}/ray stop",
            f"{start} --head --node-ip-address={machines.head} --port={GCS_PORT} --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
            " ".join(serve),
        ],
        "worker_start_ray_commands": [
            f"{binaries}/ray stop",
            f"{start} --address={address}:{GCS_PORT}",
        ],
    }


def show_cluster_file(machines: Machines, file: str) -> str:
    """Return the text of a cluster file, with instructions at its head; ``file`` is its name."""
    quoted = shlex.quote(file)
    head = [
        f"A cluster of Ray with a torchmar server on {machines.head}. ray up {quoted} starts it, and starts it again",
        f"when this file has changed; ray down {quoted} ends it. SSH has to reach all machines, which need Python 3.",
        "",
        "Before, make the token without which no one can use Ray's ports:  ray get-auth-token --generate",
        "Requests between the nodes are not encrypted: the network between them has to be a trusted one.",
        "",
        f"Models: ssh {machines.user}@{machines.head} {_HOME}/venv/bin/torchmar models --run-folder {_HOME}/.torchmar",
    ]
    text = yaml.safe_dump(cluster_file(machines), sort_keys=False, width=1000)
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + text
