"""Objects of Kubernetes for replicas of a server: Deployment, Service, autoscaler, and objects that protect them.

Kubernetes 1.30 and later. The reference: https://kubernetes.io/docs/reference/kubernetes-api/
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchmar import properties
from torchmar.address import Address
from torchmar.errors import TorchmarError
from torchmar.exporting import pods, queue_scaling
from torchmar.exporting.manifests import Manifest
from torchmar.exporting.pods import Resources
from torchmar.properties import Properties

#: The model store of images of ``torchmar export docker``.
MODEL_STORE = "/srv/torchmar/model_store"
CONFIG = "/etc/torchmar/config.properties"
SECRETS = "/run/secrets/torchmar"
#: The APIs with tokens, and the keys of the Secret.
TOKENS = {"inference": "inference_token", "management": "management_token"}

_CLIENTS = ("http", "grpc")
_Targets = Mapping[str, int] | Mapping[str, str]  # ports of containers, by API
_REMOTE = re.compile("(?<!file)://")
# Keys with addresses of other machines: URLs of archives, and the collector of spans.
_REMOTE_KEYS = ("allowed_urls", "load_models", "model_snapshot", "torchmar_otlp_endpoint")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Replicas of a server.

    Attributes:
        image: image of ``torchmar export docker``.
        name: name of the objects.
        namespace: namespace of the objects; empty: that of kubectl.
        resources: resources of each replica.
        min_replicas: least number of replicas.
        max_replicas: largest number of replicas; if equal to ``min_replicas``, there is no autoscaler.
        queue_wait: mean wait for a worker in seconds above which replicas are added; 0: scale only by CPU use.
        claim: PersistentVolumeClaim with the archives; empty: they are in the image.
        service_account: service account whose credentials fetch archives; empty: there is none.
        clients: namespaces whose pods may send requests, in addition to the own one.
        egress: whether the server may open connections; it may anyway if its configuration requires it.
        prometheus: namespace whose pods may read metrics.
        service_monitor: whether to make a ServiceMonitor of the Prometheus Operator, in place of annotations.
    """

    image: str
    name: str = "torchmar"
    namespace: str = ""
    resources: Resources = field(default_factory=Resources)
    min_replicas: int = 2
    max_replicas: int = 4
    queue_wait: float = 0.0
    claim: str = ""
    service_account: str = ""
    clients: tuple[str, ...] = ()
    egress: bool = False
    prometheus: str = "monitoring"
    service_monitor: bool = False


def objects(cluster: Cluster, config: Properties) -> list[Manifest]:
    """Return the objects, in an order in which they can be created.

    Args:
        cluster: the replicas.
        config: configuration of the user.

    Raises:
        TorchmarError: an address is a Unix socket, or encrypted, which needs files that no object provides.
        PropertiesError: an address is invalid.
    """
    configured = configuration(config)
    documents = [
        config_map(cluster, configured),
        _deployment(cluster, configured),
        service(cluster, configured.ports),
        _network_policy(cluster, configured),
    ]
    if cluster.max_replicas > 1:
        documents.append(_disruption_budget(cluster))
    if cluster.max_replicas > cluster.min_replicas:
        documents.append(_autoscaler(cluster))
    return [*documents, *service_monitors(cluster, configured)]


@dataclass(frozen=True, kw_only=True)
class PodConfiguration:
    """The configuration of the server in a pod.

    Attributes:
        values: keys and values.
        ports: ports that other pods can reach, by name.
    """

    values: Mapping[str, str]
    ports: Mapping[str, int]

    @property
    def text(self) -> str:
        """The text of ``config.properties``."""
        return properties.show(self.values)

    @property
    def annotations(self) -> dict[str, str]:
        """The annotation that changes with the configuration, so that Kubernetes then replaces the pods."""
        return {"torchmar/config": hashlib.sha256(self.text.encode()).hexdigest()}


def configuration(config: Properties, changes: Mapping[str, str] | None = None) -> PodConfiguration:
    """Return the configuration of the server in a pod.

    Clients and Prometheus reach the server from other pods; management is reachable only in its own pod. The server
    loads its models itself, so that it is not ready before they are loaded.

    Args:
        config: configuration of the user.
        changes: further keys; an empty value removes one.

    Raises:
        TorchmarError: an address is a Unix socket or encrypted.
        PropertiesError: an address is invalid.
    """
    addresses = {address.key: address for address in config.addresses()}
    for address in addresses.values():
        _check_plain(address)
    values = dict(config.values)
    for api, host in (("inference", "0.0.0.0"), ("management", "127.0.0.1"), ("metrics", "0.0.0.0")):
        values[f"{api}_address"] = f"http://{host}:{addresses[f'{api}_address'].port}"
    values |= {"grpc_inference_address": "0.0.0.0", "grpc_management_address": "127.0.0.1"}
    values["model_store"] = MODEL_STORE
    if not any(values.get(key, "").strip() for key in ("load_models", "model_snapshot")):
        values["load_models"] = "all"
    if has_tokens(config):
        values |= {f"torchmar_{api}_token_file": f"{SECRETS}/{key}" for api, key in TOKENS.items()}
    if changes:
        values = {key: value for key, value in {**values, **changes}.items() if value or key not in changes}
    return PodConfiguration(values=values, ports=_ports(Properties(config.file, values)))


def has_tokens(config: Properties) -> bool:
    """Return whether requests need tokens, which are then in a Secret."""
    return not config.flag("disable_token_authorization")


def comment(cluster: Cluster, config: Properties) -> str:
    """Return the comment at the head of the file: further steps, and how to reach the server."""
    lines = [f"Replicas of a torchmar server: {kubectl(cluster)} apply -f FILE", *tokens_comment(cluster, config)]
    if cluster.claim:
        lines += ["", f"The archives are in the PersistentVolumeClaim {cluster.claim}."]
    if cluster.queue_wait:
        rule = [f"  {line}" for line in queue_scaling.adapter_rule().splitlines()]
        lines += [
            "",
            f"The autoscaler reads {queue_scaling.METRIC}, which needs this rule of Prometheus Adapter:",
            *rule,
        ]
    lines += ["", f"Management stays in the pod: {kubectl(cluster)} exec deploy/{cluster.name} -- torchmar models"]
    return "\n".join(lines)


def tokens_comment(cluster: Cluster, config: Properties) -> list[str]:
    """Return the lines with the command that creates the Secret with the tokens; empty if there are no tokens."""
    if not has_tokens(config):
        return []
    literals = " \\\n".join(f'    --from-literal={key}="$(openssl rand -hex 24)"' for key in TOKENS.values())
    return [
        "",
        "Before, make its tokens, which all replicas share; they are in no file:",
        f"  {kubectl(cluster)} create secret generic {secret(cluster)} \\",
        *literals.splitlines(),
    ]


def kubectl(cluster: Cluster) -> str:
    """Return kubectl with the namespace of a cluster."""
    return f"kubectl -n {cluster.namespace}" if cluster.namespace else "kubectl"


def _check_plain(address: Address) -> None:
    if address.unix:
        raise TorchmarError(
            f"{address.key} is a Unix socket, which other pods cannot reach", hint="write it like http://127.0.0.1:8080"
        )
    if address.tls:
        raise TorchmarError(
            f"{address.key} is encrypted, and the exported objects have no certificate",
            hint="write it with http://, and let the Ingress or the mesh encrypt; for gRPC, enable_grpc_ssl=false",
        )


def _ports(config: Properties) -> dict[str, int]:
    ports = {address.key: address.port for address in config.addresses()}
    by_name = {"http": ports["inference_address"], "grpc": ports["grpc_inference_port"]}
    if config.serves_metrics and ports["metrics_address"] not in by_name.values():
        by_name["metrics"] = ports["metrics_address"]
    return by_name


def metadata(cluster: Cluster, name: str = "") -> dict[str, Any]:
    """Return the metadata of an object; ``name`` in place of the cluster's."""
    return {
        "name": name or cluster.name,
        "namespace": cluster.namespace or None,
        "labels": dict(pods.labels(cluster.name)),
    }


def secret(cluster: Cluster) -> str:
    """Return the name of the Secret with the tokens."""
    return f"{cluster.name}-tokens"


def config_map(cluster: Cluster, configured: PodConfiguration) -> Manifest:
    """Return the ConfigMap with ``config.properties``."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(cluster),
        "data": {"config.properties": configured.text},
    }


def pod_annotations(cluster: Cluster, configured: PodConfiguration) -> dict[str, str]:
    """Return the annotations of a server's pod: for its configuration, and for Prometheus if there is no monitor."""
    if "metrics" not in configured.ports or cluster.service_monitor:
        return configured.annotations
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": str(configured.ports["metrics"])}
    return {**configured.annotations, **scraped}


def volumes_and_mounts(cluster: Cluster, values: Mapping[str, str]) -> tuple[list[Any], list[Any]]:
    """Return the volumes of a pod and their mounts: configuration, tokens, archives, and writable folders."""
    volumes: list[Any] = [{"name": "config", "configMap": {"name": cluster.name}}, *pods.writable_volumes()]
    mounts: list[Any] = [
        {"name": "config", "mountPath": CONFIG.rpartition("/")[0], "readOnly": True},
        *pods.writable_mounts(),
    ]
    if values.get(f"torchmar_{next(iter(TOKENS))}_token_file", "").startswith(SECRETS):
        volumes.append({"name": "tokens", "secret": {"secretName": secret(cluster), "defaultMode": 0o440}})
        mounts.append({"name": "tokens", "mountPath": SECRETS, "readOnly": True})
    if cluster.claim:
        claim = {"claimName": cluster.claim, "readOnly": True}
        volumes.append({"name": "archives", "persistentVolumeClaim": claim})
        mounts.append({"name": "archives", "mountPath": MODEL_STORE, "readOnly": True})
    return volumes, mounts


def pod_spec(cluster: Cluster, container: Mapping[str, Any], volumes: list[Any], **further: object) -> dict[str, Any]:
    """Return the specification of a pod with one container; ``further`` keys concern its placement."""
    return {
        "serviceAccountName": cluster.service_account or None,
        "automountServiceAccountToken": False,
        # Otherwise Kubernetes sets TORCHMAR_PORT and similar variables for a Service of this name.
        "enableServiceLinks": False,
        "securityContext": pods.pod_security(),
        "terminationGracePeriodSeconds": pods.GRACE_SECONDS,
        **further,
        "containers": [container],
        "volumes": volumes,
    }


def _deployment(cluster: Cluster, configured: PodConfiguration) -> Manifest:
    scaled = cluster.max_replicas > cluster.min_replicas
    volumes, mounts = volumes_and_mounts(cluster, configured.values)
    selected = dict(pods.labels(cluster.name))
    container = {
        "name": "torchmar",
        "image": cluster.image,
        # exec replaces the shell by the server, which then gets the signals of the container.
        "command": ["torchmar-serve", "--foreground", "--ncs", "--ts-config", CONFIG],
        "env": pods.environment(cluster.resources.gpus),
        "ports": [{"name": name, "containerPort": port} for name, port in configured.ports.items()],
        # The server listens before it loads its models: until they are loaded it is alive and not ready.
        "startupProbe": pods.probe(pods.LIVE, "http", periodSeconds=2, timeoutSeconds=2, failureThreshold=60),
        "livenessProbe": pods.probe(pods.LIVE, "http", periodSeconds=10, timeoutSeconds=5, failureThreshold=6),
        "readinessProbe": pods.probe(pods.READY, "http", periodSeconds=5, timeoutSeconds=3, failureThreshold=2),
        "lifecycle": pods.lifecycle(),
        "resources": cluster.resources.manifest(),
        "securityContext": pods.container_security(),
        "volumeMounts": mounts,
    }
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selected},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(cluster),
        "spec": {
            # An autoscaler sets the number of replicas itself.
            "replicas": None if scaled else cluster.min_replicas,
            "selector": {"matchLabels": selected},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": selected, "annotations": pod_annotations(cluster, configured)},
                "spec": pod_spec(cluster, container, volumes, topologySpreadConstraints=[spread]),
            },
        },
    }


def service(
    cluster: Cluster, ports: Mapping[str, int], targets: Mapping[str, int] | Mapping[str, str] | None = None
) -> Manifest:
    """Return the Service of pods with the labels of a cluster.

    Args:
        cluster: the replicas.
        ports: ports of the Service, by API.
        targets: names or numbers of the containers' ports; None: they have the names of the APIs.
    """
    protocols = {"http": "http", "grpc": "kubernetes.io/h2c", "metrics": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(cluster),
        "spec": {
            "selector": dict(pods.labels(cluster.name)),
            "ports": [
                {
                    "name": api,
                    "port": port,
                    "targetPort": targets[api] if targets else api,
                    "appProtocol": protocols[api],
                }
                for api, port in ports.items()
            ],
        },
    }


def of_namespace(name: str) -> dict[str, Any]:
    """Return the selector for the pods of a namespace in a NetworkPolicy."""
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def ingress(cluster: Cluster, targets: _Targets) -> list[dict[str, Any]]:
    """Return the rules of a NetworkPolicy for requests to the ports of a server.

    Args:
        cluster: the replicas.
        targets: names or numbers of the containers' ports, by API.
    """
    clients = [{"podSelector": {}}, *map(of_namespace, cluster.clients)]
    rules = [{"from": clients, "ports": [{"port": targets[api]} for api in _CLIENTS]}]
    if "metrics" in targets:
        readers = [{"podSelector": {}}, of_namespace(cluster.prometheus)]
        rules.append({"from": readers, "ports": [{"port": targets["metrics"]}]})
    return rules


def _network_policy(cluster: Cluster, configured: PodConfiguration) -> Manifest:
    values = configured.values
    reaches = any(_REMOTE.search(values.get(key, "")) for key in _REMOTE_KEYS)
    installs = values.get("install_py_dep_per_model", "").strip().lower() == "true"
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(cluster),
        "spec": {
            "podSelector": {"matchLabels": dict(pods.labels(cluster.name))},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress(cluster, {api: api for api in configured.ports}),
            "egress": [{}] if cluster.egress or reaches or installs else [],
        },
    }


def _disruption_budget(cluster: Cluster) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(cluster),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": dict(pods.labels(cluster.name))}},
    }


def _autoscaler(cluster: Cluster) -> Manifest:
    metrics = [queue_scaling.cpu_metric()]
    if cluster.queue_wait:
        target = {"type": "AverageValue", "averageValue": f"{round(cluster.queue_wait * 1000)}m"}
        metrics.append({"type": "Pods", "pods": {"metric": {"name": queue_scaling.METRIC}, "target": target}})
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(cluster),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": cluster.name},
            "minReplicas": cluster.min_replicas,
            "maxReplicas": cluster.max_replicas,
            "metrics": metrics,
            "behavior": queue_scaling.behavior(),
        },
    }


def service_monitors(cluster: Cluster, configured: PodConfiguration) -> list[Manifest]:
    """Return the ServiceMonitor of the Service; empty if it is not wanted, or there is no separate metrics API."""
    return [_service_monitor(cluster)] if cluster.service_monitor and "metrics" in configured.ports else []


def _service_monitor(cluster: Cluster) -> Manifest:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata(cluster),
        "spec": {
            "selector": {"matchLabels": dict(pods.labels(cluster.name))},
            "endpoints": [{"port": "metrics", "interval": "15s"}],
        },
    }
