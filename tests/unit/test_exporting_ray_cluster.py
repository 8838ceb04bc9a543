"""torchmar export ray-cluster: a RayService that KubeRay takes, and a cluster file that Ray takes."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import oracles
from tests.support import manifests
from tests.support.command import torchmar_here
from torchmar import properties
from torchmar.errors import TorchmarError
from torchmar.exporting import ray_config
from torchmar.exporting.kubernetes import CONFIG, MODEL_STORE, Cluster
from torchmar.exporting.manifests import show
from torchmar.exporting.pods import RUN_FOLDER, Resources
from torchmar.exporting.ray_cluster import Machines, RayPods, cluster_file, comment, objects
from torchmar.properties import Properties

IMAGE = "registry.example.com/torchmar:1.0"
FULL = RayPods(
    pods=Cluster(
        image=IMAGE,
        name="models",
        namespace="ml",
        resources=Resources(cpu="8", memory="32Gi", gpus=2),
        claim="archives",
        service_account="reader",
        clients=("ingress-nginx",),
        service_monitor=True,
    ),
    nodes=3,
    servers=2,
    redis="redis://redis:6379",
    redis_secret="redis-password",
)
MACHINES = Machines(head="10.0.0.1", workers=("10.0.0.2", "10.0.0.3"), version="1.0")


def made(cluster: RayPods, **config: str) -> dict[str, Any]:
    """Return the objects by kind, as they are in the file, after a strict check."""
    return {each["kind"]: each for each in manifests.objects(_text(cluster, tuple(config.items())))}


@cache
def _text(cluster: RayPods, values: tuple[tuple[str, str], ...]) -> str:
    config = Properties(None, dict(values))
    return show(objects(cluster, config), comment(cluster, config))


def test_kuberay_takes_the_service_strictly_and_starts_the_front_as_its_only_application() -> None:
    by_kind = made(RayPods(pods=Cluster(image=IMAGE)))
    assert list(by_kind) == ["ConfigMap", "RayService", "Service", "NetworkPolicy"]
    spec = by_kind["RayService"]["spec"]
    config = ray_config.parse(spec["serveConfigV2"])
    (application,) = config.applications
    assert application.import_path == "torchmar.engines.ray_front:app"
    assert application.args == {"config": CONFIG, "model_store": MODEL_STORE, "run_folder": RUN_FOLDER}
    assert spec["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    assert "gcsFaultToleranceOptions" not in spec["rayClusterConfig"]
    assert list(made(FULL)) == ["ConfigMap", "RayService", "Service", "NetworkPolicy", "ServiceMonitor"]


def test_the_front_answers_where_kuberay_and_clients_ask(tmp_path: Path) -> None:
    by_kind = made(FULL, inference_address="http://127.0.0.1:9080")
    file = tmp_path / "config.properties"
    file.write_text(by_kind["ConfigMap"]["data"]["config.properties"])
    text = properties.read(file)
    assert text.get("inference_address") == "http://0.0.0.0:9080"
    assert text.get("torchmar_health_path") == "/-/healthz"
    cluster = by_kind["RayService"]["spec"]["rayClusterConfig"]
    (nodes,) = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], nodes):
        (container,) = group["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["serve"] == 9080
        # KubeRay's default for the metrics of Ray is 8080.
        assert ports["metrics"] == int(group["rayStartParams"]["metrics-export-port"]) not in (8080, 8082)
        assert container["securityContext"]["runAsNonRoot"]
    service = by_kind["Service"]["spec"]
    assert service["selector"].items() <= nodes["template"]["metadata"]["labels"].items()
    assert not service["selector"].items() <= cluster["headGroupSpec"]["template"]["metadata"]["labels"].items()
    targets = {port["targetPort"] for port in service["ports"]}
    assert targets <= {port["containerPort"] for port in container["ports"]}


def test_only_nodes_have_the_resource_of_the_front_and_cores_for_replicas() -> None:
    cluster = made(FULL)["RayService"]["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (nodes,) = cluster["workerGroupSpecs"]
    assert (nodes["replicas"], nodes["minReplicas"], nodes["maxReplicas"]) == (3, 3, 3)
    resource = json.loads(json.loads(nodes["rayStartParams"]["resources"]))  # a shell removes the outer quotes
    (deployment,) = ray_config.parse(made(FULL)["RayService"]["spec"]["serveConfigV2"]).applications[0].deployments
    assert deployment.num_replicas == 2
    assert deployment.ray_actor_options and deployment.ray_actor_options.resources == resource
    (container,) = nodes["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": "2"}


def test_a_redis_keeps_the_state_of_the_head() -> None:
    cluster = made(FULL)["RayService"]["spec"]["rayClusterConfig"]
    options = cluster["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "redis://redis:6379"
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "redis-password", "key": "password"}


@pytest.mark.parametrize("place", ["spec", "rayClusterConfig", "headGroupSpec", "template"])
def test_a_misspelt_key_of_the_service_is_found(place: str) -> None:
    document = made(FULL)["RayService"]
    section = {"spec": document["spec"], "rayClusterConfig": document["spec"]["rayClusterConfig"]}
    section["headGroupSpec"] = section["rayClusterConfig"]["headGroupSpec"]
    section["template"] = section["headGroupSpec"]["template"]["spec"]
    key = next(iter(section[place]))
    section[place][f"{key}s"] = section[place].pop(key)
    with pytest.raises(Exception, match=f"{key}s"):
        manifests.check(document)


def test_a_node_has_one_server_at_the_most() -> None:
    with pytest.raises(TorchmarError, match="3 servers need as many nodes, and there are 2"):
        objects(RayPods(pods=Cluster(image=IMAGE), servers=3), Properties(None, {}))


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ({"head": "10.0.0.1; reboot"}, "no host"),
        ({"workers": ("10.0.0.1",)}, "10.0.0.1 is named twice"),
        ({"user": "-oProxyCommand"}, "no name of a user"),
    ],
)
def test_what_is_no_machine_is_an_error(machines: dict[str, Any], message: str) -> None:
    with pytest.raises(TorchmarError, match=message):
        cluster_file(Machines(**{"head": "10.0.0.1", **machines}))


@pytest.mark.oracle
def test_ray_takes_the_cluster_file(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    torchmar_here("export", "ray-cluster", "--head", "10.0.0.1", "--worker", "10.0.0.2", "-o", file, cwd=tmp_path)
    code = """if True:
        import sys, yaml
        from ray.autoscaler._private.util import prepare_config, validate_config
        config = prepare_config(yaml.safe_load(open(sys.argv[1])))
        validate_config(config)
        print(config["available_node_types"]["local.cluster.node"])
        validate_config({**config, "head_start_ray_comands": []})
    """
    python = oracles.python_of("ray", borrows=True)
    ran = subprocess.run([python, "-c", code, file], capture_output=True, text=True, timeout=120)
    assert "'min_workers': 1, 'max_workers': 1" in ran.stdout, ran.stderr
    assert "head_start_ray_comands" in ran.stderr  # its validation is strict


def test_the_cluster_file_starts_ray_with_a_token_and_the_server_on_the_head() -> None:
    content = cluster_file(MACHINES)
    assert "~/.ray/auth_token" in content["file_mounts"]
    commands = [*content["head_start_ray_commands"], *content["worker_start_ray_commands"]]
    started = [command for command in commands if "ray start" in command or "torchmar serve" in command]
    assert len(started) == 3 and all("RAY_AUTH_MODE=token" in command for command in started)
    assert "torchmar serve --engine ray --address 10.0.0.1:6379" in content["head_start_ray_commands"][-1]


def test_the_command_writes_either(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    torchmar_here("export", "ray-cluster", "--image", IMAGE, "-o", file, cwd=tmp_path)
    assert "kubectl create secret generic torchmar-tokens" in file.read_text()
    assert {each["kind"] for each in manifests.objects(file.read_text())} >= {"RayService", "ConfigMap"}
    machine, service = ("--head", "10.0.0.1"), ("--image", IMAGE)
    wrong = [[*machine, "--gpus", "1"], [*machine, "--redis-secret", "redis"]]
    wrong += [[*service, "--worker", "10.0.0.2"], [*service, "--model-store", "store"]]
    for arguments in (*wrong, []):
        failed = torchmar_here("export", "ray-cluster", *arguments, cwd=tmp_path, code=2)
        assert "only" in failed.stderr or "give --image" in failed.stderr
    written = yaml.safe_load(torchmar_here("export", "ray-cluster", "--head", "10.0.0.1", cwd=tmp_path).stdout)
    assert written["provider"] == {"type": "local", "head_ip": "10.0.0.1", "worker_ips": []}
