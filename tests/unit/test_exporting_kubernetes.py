"""torchmar export kubernetes writes objects that Kubernetes takes, with few rights, and says what they need."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support import manifests
from tests.support.command import torchmar_here
from torchmar import properties
from torchmar.errors import TorchmarError
from torchmar.exporting.kubernetes import CONFIG, MODEL_STORE, SECRETS, Cluster, comment, objects
from torchmar.exporting.manifests import check_image, check_name, check_quantity, show
from torchmar.exporting.pods import GRACE_SECONDS, PRE_STOP_SECONDS, Resources
from torchmar.properties import Properties
from torchmar.server.app import GRACE
from torchmar.server.config import reader

CLUSTER = Cluster(image="registry.example.com/torchmar:1.0")
FULL = replace(
    CLUSTER,
    name="models",
    namespace="ml",
    resources=Resources(cpu="4", memory="8Gi", gpus=2),
    queue_wait=0.1,
    claim="archives",
    service_account="reader",
    clients=("ingress-nginx",),
    service_monitor=True,
)
OPEN = Properties(None, {"disable_token_authorization": "true"})
VARIANTS = {
    "usual": (CLUSTER, Properties(None, {})),
    "full": (FULL, Properties(None, {"load_models": "https://models.example.com/a.mar"})),
    "open": (replace(CLUSTER, min_replicas=1, max_replicas=1), OPEN),
    "quiet": (CLUSTER, Properties(None, {"enable_metrics_api": "false"})),
}


def made(cluster: Cluster, config: Properties) -> dict[str, Any]:
    """Return the objects by kind, as they are in the file."""
    return {each["kind"]: each for each in manifests.read(_text(cluster, tuple(config.values.items())))}


@cache
def _text(cluster: Cluster, values: tuple[tuple[str, str], ...]) -> str:
    config = Properties(None, dict(values))
    return show(objects(cluster, config), comment(cluster, config))


@pytest.mark.parametrize("variant", VARIANTS)
def test_kubernetes_takes_all_objects_strictly(variant: str) -> None:
    by_kind = made(*VARIANTS[variant])
    for document in by_kind.values():
        manifests.check(document)
    kinds = list(by_kind)
    expected = ["ConfigMap", "Deployment", "Service", "NetworkPolicy"]
    expected += [] if variant == "open" else ["PodDisruptionBudget", "HorizontalPodAutoscaler"]
    assert kinds == [*expected, *(["ServiceMonitor"] if variant == "full" else [])]


@pytest.mark.parametrize("kind", ["Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "ServiceMonitor"])
def test_a_misspelt_key_is_found(kind: str) -> None:
    document = made(*VARIANTS["full"])[kind]
    key = next(iter(document["spec"]))
    document["spec"][f"{key}s"] = document["spec"].pop(key)
    with pytest.raises(Exception, match=f"{key}s"):
        manifests.check(document)


def test_a_pod_has_the_rights_of_the_restricted_standard_and_writes_only_to_two_folders() -> None:
    pod = made(*VARIANTS["full"])["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/run/torchmar", "/tmp"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "2"}


def test_a_pod_is_killed_only_after_the_server_has_drained() -> None:
    pod = made(*VARIANTS["usual"])["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == GRACE_SECONDS > PRE_STOP_SECONDS + GRACE
    assert pod["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}}


def test_the_number_of_replicas_belongs_to_the_autoscaler_if_there_is_one() -> None:
    scaled, fixed = made(*VARIANTS["usual"]), made(*VARIANTS["open"])
    assert "replicas" not in scaled["Deployment"]["spec"] and fixed["Deployment"]["spec"]["replicas"] == 1
    (cpu,) = scaled["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert cpu["resource"]["name"] == "cpu"
    _, queue = made(*VARIANTS["full"])["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert queue["pods"]["target"] == {"type": "AverageValue", "averageValue": "100m"}
    # The rule makes the metric that the autoscaler reads.
    assert f"name: {{as: {queue['pods']['metric']['name']}}}" in comment(*VARIANTS["full"])


def test_tokens_are_in_a_secret_that_the_file_does_not_contain() -> None:
    cluster, config = VARIANTS["usual"]
    text = show(objects(cluster, config), comment(cluster, config))
    assert "kind: Secret" not in text
    command = re.search(r"#   kubectl create secret generic (\S+)((?:\s*\\\n#     [^\\\n]+)+)", text)
    assert command
    secret = next(
        volume["secret"]
        for volume in made(cluster, config)["Deployment"]["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    )
    assert secret["secretName"] == command[1]
    keys = re.findall(r"--from-literal=(\w+)=", command[2])
    values = dict(line.split("=", 1) for line in config_of(cluster, config).splitlines() if "=" in line)
    files = {values[f"torchmar_{api}_token_file"] for api in ("inference", "management")}
    assert files == {f"{SECRETS}/{key}" for key in keys}
    assert "Secret" not in comment(*VARIANTS["open"]) and "secret" not in str(made(*VARIANTS["open"]))


def config_of(cluster: Cluster, config: Properties) -> str:
    return str(made(cluster, config)["ConfigMap"]["data"]["config.properties"])


def test_the_configuration_is_one_that_the_server_reads(tmp_path: Path) -> None:
    for cluster, config in VARIANTS.values():
        text = config_of(cluster, config).replace(MODEL_STORE, str(tmp_path))
        for key in ("inference_token", "management_token"):
            (tmp_path / key).write_text("a" * 40)
            text = text.replace(f"{SECRETS}/{key}", str(tmp_path / key))
        file = tmp_path / "config.properties"
        file.write_text(text)
        settings, warnings = reader.read(file, {})
        assert warnings == []
        assert settings.inference.host == settings.metrics.host == settings.grpc_inference.host == "0.0.0.0"
        assert settings.management.loopback and settings.grpc_management.loopback
        assert settings.load_models  # without it, a pod would be ready before it has models


def test_another_configuration_is_another_pod() -> None:
    def annotations(config: Properties) -> Any:
        return made(CLUSTER, config)["Deployment"]["spec"]["template"]["metadata"]["annotations"]

    usual = annotations(Properties(None, {}))
    assert annotations(Properties(None, {})) == usual != annotations(Properties(None, {"job_queue_size": "7"}))
    assert usual["prometheus.io/port"] == "8082"


def test_only_known_pods_send_requests() -> None:
    policy = made(*VARIANTS["full"])["NetworkPolicy"]["spec"]
    assert [rule["ports"] for rule in policy["ingress"]] == [
        [{"port": "http"}, {"port": "grpc"}],
        [{"port": "metrics"}],
    ]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}} in policy[
        "ingress"
    ][0]["from"]


@pytest.mark.parametrize(
    ("values", "egress", "expected"),
    [
        ({}, False, []),
        ({"allowed_urls": "file:///srv/.*"}, False, []),
        ({"load_models": "https://models.example.com/a.mar"}, False, [{}]),
        ({"torchmar_otlp_endpoint": "http://collector:4318"}, False, [{}]),
        ({"install_py_dep_per_model": "true"}, False, [{}]),
        ({}, True, [{}]),
    ],
)
def test_the_server_reaches_others_only_where_it_has_to(
    values: dict[str, str], egress: bool, expected: list[object]
) -> None:
    policy = made(replace(CLUSTER, egress=egress), Properties(None, values))["NetworkPolicy"]
    assert policy["spec"]["egress"] == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inference_address": "unix:/run/a.sock"}, "is a Unix socket"),
        ({"inference_address": "https://127.0.0.1:8443"}, "is encrypted"),
        ({"enable_grpc_ssl": "true"}, "is encrypted"),
    ],
)
def test_addresses_that_need_more_than_the_objects_are_rejected(values: dict[str, str], message: str) -> None:
    with pytest.raises(TorchmarError, match=message):
        objects(CLUSTER, Properties(None, values))


def test_the_command_writes_one_file(tmp_path: Path) -> None:
    ran = torchmar_here("export", "kubernetes", "--image", "torchmar:1", "-o", "all.yaml", cwd=tmp_path)
    text = (tmp_path / "all.yaml").read_text()
    assert ran.stdout == "" and "wrote all.yaml" in ran.stderr
    assert len(manifests.objects(text)) == 6
    assert torchmar_here("export", "kubernetes", "--image", "torchmar:1", cwd=tmp_path).stdout == text
    assert CONFIG in text
    flags = ("--image", "torchmar:1", "--replicas", "5", "--max-replicas", "2")
    assert "--replicas 5 is more than" in torchmar_here("export", "kubernetes", *flags, cwd=tmp_path, code=1).stderr


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_name("Models", "--name"), "--name Models: no name of an object"),
        (lambda: check_name("a" * 51, "--name", longest=50), "no name of an object"),
        (lambda: check_quantity("two", "--cpu"), "--cpu two: no quantity"),
        (lambda: check_quantity("0", "--memory"), "--memory 0: no quantity"),
        (lambda: check_image("a b"), "--image a b: no image"),
    ],
)
def test_names_and_quantities_that_kubernetes_would_reject_are_named(check: Callable[[], str], message: str) -> None:
    with pytest.raises(TorchmarError, match=message):
        check()
    assert check_quantity("1.5Gi", "--memory") == "1.5Gi" and check_quantity("500m", "--cpu") == "500m"
    assert check_name("a-1", "--name") == "a-1" and check_image("r.io/a/b:1@sha256:00")


def test_a_deployment_gives_models_workers_and_gpus(tmp_path: Path, make: Callable[..., Path]) -> None:
    store = tmp_path / "model_store"
    make(store=store, name="a", config={"minWorkers": 3, "maxWorkers": 3})
    make(store=store, name="b", config={"deviceIds": [0, 1], "deviceType": "gpu", "minWorkers": 2, "maxWorkers": 2})
    file = tmp_path / "deployment.yaml"
    file.write_text(
        'server: {gpus: "4x10GiB"}\n'
        'models:\n  a: {versions: {"1.0": {}}}\n  b: {versions: {"1.0": {worker_memory: 6GiB}}}\n'
    )
    flags = ("--image", "torchmar:1", "--deployment", "deployment.yaml")
    ran = torchmar_here("export", "kubernetes", *flags, cwd=tmp_path)
    by_kind = {each["kind"]: each for each in manifests.read(ran.stdout)}
    (container,) = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] == "5"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"  # 6 GiB each: two do not fit on one
    written = tmp_path / "config.properties"
    written.write_text(by_kind["ConfigMap"]["data"]["config.properties"])
    assert properties.read(written).get("load_models") == "a-1.0.mar,b-1.0.mar"
    (store / "a-1.0.mar").unlink()
    assert "no archive of a 1.0" in torchmar_here("export", "kubernetes", *flags, cwd=tmp_path, code=1).stderr
