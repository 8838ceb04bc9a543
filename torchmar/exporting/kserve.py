"""A ClusterServingRuntime and an InferenceService of KServe, for archives in the folders of its TorchServe runtime.

KServe 0.21: https://github.com/kserve/kserve/tree/master/config (runtimes, crd). The runtime replaces that of
TorchServe. It uses the ports of TorchServe's wrapper, 8080 (REST) and 8081 (gRPC), as `torchmar.platforms.kserve` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torchmar.exporting import pods, queue_scaling
from torchmar.exporting.pods import Resources
from torchmar.platforms.kserve import CONFIG, GRPC_PORT, MODEL_STORE, PORT

Protocol = Literal["v1", "v2", "grpc-v2"]

#: The runtime of TorchServe in KServe has the priority 2; KServe selects the larger number.
PRIORITY = 3
_METRICS_PORT = 8082
_CONTAINER = "kserve-container"  # the server's container in a pod of KServe


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime for models of the format ``pytorch``.

    Attributes:
        image: image of ``torchmar export docker``.
        name: name of the runtime.
        auto_select: whether it also serves InferenceServices that do not name a runtime.
        namespace: namespace of a ServingRuntime; empty: it is a ClusterServingRuntime.
        resources: resources of services that do not name any.
    """

    image: str
    name: str = "torchmar"
    auto_select: bool = False
    namespace: str = ""
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True, kw_only=True)
class Canary:
    """The models that get a part of the requests, for a canary rollout.

    Attributes:
        storage: URI of the models.
        percent: percentage of the requests.
    """

    storage: str
    percent: int


@dataclass(frozen=True, kw_only=True)
class QueueScaling:
    """Replicas by waiting time, with KEDA.

    Attributes:
        prometheus: URL of Prometheus.
        wait_ms: mean wait for a worker in milliseconds above which replicas are added.
    """

    prometheus: str
    wait_ms: float


@dataclass(frozen=True, kw_only=True)
class Service:
    """An InferenceService.

    Attributes:
        name: name of the service.
        storage: URI of a folder with ``config/config.properties`` and ``model-store/``.
        runtime: name of the runtime.
        namespace: namespace of the service; empty: that of kubectl.
        protocol: protocol of the clients.
        resources: resources of each replica.
        min_replicas: least number of replicas.
        max_replicas: largest number of replicas.
        scaling: scaling by waiting time; None: by CPU use.
        canary: models of a canary rollout; None: there is none.
        service_account: service account whose credentials read the storage; empty: the default account.
    """

    name: str
    storage: str
    runtime: str = "torchmar"
    namespace: str = ""
    protocol: Protocol = "v2"
    resources: Resources = field(default_factory=Resources)
    min_replicas: int = 1
    max_replicas: int = 4
    scaling: QueueScaling | None = None
    canary: Canary | None = None
    service_account: str = ""


def runtime(spec: Runtime) -> dict[str, Any]:
    """Return a ClusterServingRuntime, or a ServingRuntime of a namespace."""
    formats = [
        # KServe requires one priority for all versions of a format.
        {"name": "pytorch", "version": version, "autoSelect": spec.auto_select, "priority": PRIORITY}
        for version in ("1", "2")
    ]
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime" if spec.namespace else "ClusterServingRuntime",
        "metadata": {
            "name": spec.name,
            "namespace": spec.namespace or None,
            # KServe then sets the label serviceEnvelope and the variable PROTOCOL_VERSION, as it does for TorchServe.
            "annotations": {"serving.kserve.io/server-type": "torchserve"},
        },
        "spec": {
            "annotations": {"prometheus.kserve.io/port": str(_METRICS_PORT), "prometheus.kserve.io/path": "/metrics"},
            "supportedModelFormats": formats,
            "protocolVersions": ["v1", "v2", "grpc-v2"],
            "containers": [
                {
                    "name": _CONTAINER,
                    "image": spec.image,
                    "command": ["torchmar", "serve"],
                    "args": [
                        "--platform=kserve",
                        f"--config={CONFIG}",
                        f"--model-store={MODEL_STORE}",
                    ],
                    "env": [
                        *pods.environment(spec.resources.gpus),
                        {"name": "TS_SERVICE_ENVELOPE", "value": "{{.Labels.serviceEnvelope}}"},
                    ],
                    "readinessProbe": pods.probe(pods.READY, PORT, periodSeconds=5, timeoutSeconds=3),
                    "livenessProbe": pods.probe(
                        pods.LIVE, PORT, initialDelaySeconds=20, periodSeconds=10, timeoutSeconds=5, failureThreshold=6
                    ),
                    "resources": spec.resources.manifest(),
                    "securityContext": pods.container_security(),
                    "volumeMounts": pods.writable_mounts(),
                }
            ],
            "volumes": pods.writable_volumes(),
        },
    }


def inference_service(service: Service) -> dict[str, Any]:
    """Return an InferenceService."""
    annotations = {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "keda" if service.scaling else "hpa",
        "serving.kserve.io/enable-prometheus-scraping": "true",
    }
    spec: dict[str, Any] = {"predictor": _predictor(service)}
    if service.canary:
        candidate = replace(service, storage=service.canary.storage, min_replicas=1, scaling=None)
        spec["canary"] = [{"trafficPercent": service.canary.percent, "predictor": _predictor(candidate)}]
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": service.name, "namespace": service.namespace or None, "annotations": annotations},
        "spec": spec,
    }


def _predictor(service: Service) -> Mapping[str, Any]:
    metrics = [queue_scaling.cpu_metric()]
    if service.scaling:
        # Names of the service's pods begin with its name.
        namespace = f'namespace="{service.namespace}",' if service.namespace else ""
        query = queue_scaling.replicas_times_wait(f'{namespace}pod=~"{service.name}-predictor-.+"')
        metric = {"backend": "prometheus", "serverAddress": service.scaling.prometheus, "query": query}
        target = {"type": "Value", "value": f"{service.scaling.wait_ms:g}"}
        metrics.append({"type": "External", "external": {"metric": metric, "target": target}})
    container: dict[str, Any] = {}
    if service.protocol == "grpc-v2":
        # The probes of the runtime use HTTP, on a port that is also open.
        container = {"ports": [{"containerPort": GRPC_PORT, "name": "h2c", "protocol": "TCP"}]}
    return {
        "minReplicas": service.min_replicas,
        "maxReplicas": service.max_replicas,
        "autoScaling": {"metrics": metrics, "behavior": queue_scaling.behavior()},
        "serviceAccountName": service.service_account or None,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": pods.GRACE_SECONDS,
        "model": {
            "name": _CONTAINER,
            "modelFormat": {"name": "pytorch"},
            "runtime": service.runtime,
            "protocolVersion": service.protocol,
            "storageUri": service.storage,
            "resources": service.resources.manifest(),
            "lifecycle": pods.lifecycle(),
            **container,
        },
    }
