"""torchmar export kserve writes a runtime and services that KServe takes, and the folder that a service reads."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.support import manifests
from tests.support.command import torchmar_here
from torchmar import properties
from torchmar.exporting.kserve import (
    PRIORITY,
    Canary,
    QueueScaling,
    Runtime,
    Service,
    inference_service,
    runtime,
)
from torchmar.exporting.manifests import show
from torchmar.exporting.pods import Resources

IMAGE = "registry.example.com/torchmar:1.0"
SERVICE = Service(
    name="models",
    storage="s3://bucket/models",
    namespace="ml",
    protocol="grpc-v2",
    resources=Resources(cpu="2", memory="4Gi", gpus=1),
    scaling=QueueScaling(prometheus="http://prometheus.monitoring:9090", wait_ms=100),
    canary=Canary(storage="s3://bucket/next", percent=10),
    service_account="reader",
)


def valid(document: Any) -> dict[str, Any]:
    """Return an object as it is in the file, after a strict check."""
    (read,) = manifests.objects(show([document]))
    return read


def test_kserve_takes_the_runtime_strictly() -> None:
    spec = valid(runtime(Runtime(image=IMAGE)))["spec"]
    (container,) = spec["containers"]
    assert container["name"] == "kserve-container"
    assert spec["protocolVersions"] == ["v1", "v2", "grpc-v2"]
    assert {each["name"] for each in spec["supportedModelFormats"]} == {"pytorch"}
    assert not any(each["autoSelect"] for each in spec["supportedModelFormats"])
    assert container["securityContext"]["readOnlyRootFilesystem"] and container["securityContext"]["runAsNonRoot"]
    assert valid(runtime(Runtime(image=IMAGE, namespace="ml")))["kind"] == "ServingRuntime"


def test_a_runtime_that_is_selected_by_itself_goes_before_torchserves() -> None:
    formats = valid(runtime(Runtime(image=IMAGE, auto_select=True)))["spec"]["supportedModelFormats"]
    assert all(each["autoSelect"] for each in formats)
    assert {each["priority"] for each in formats} == {PRIORITY} and PRIORITY > 2  # that of kserve-torchserve


def test_kserve_takes_services_strictly() -> None:
    plain = valid(inference_service(Service(name="m", storage="pvc://claim/models")))
    assert plain["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "hpa"
    assert "canary" not in plain["spec"]
    full = valid(inference_service(SERVICE))
    assert full["spec"]["predictor"]["model"]["ports"] == [{"containerPort": 8081, "name": "h2c", "protocol": "TCP"}]
    (canary,) = full["spec"]["canary"]
    assert canary["trafficPercent"] == 10
    assert canary["predictor"]["model"]["storageUri"] == "s3://bucket/next"
    assert full["spec"]["predictor"]["model"]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_keda_compares_the_wait_with_the_target_however_many_replicas_there_are() -> None:
    cpu, queue = valid(inference_service(SERVICE))["spec"]["predictor"]["autoScaling"]["metrics"]
    assert cpu["resource"]["name"] == "cpu"
    # KServe reads target.value, and KEDA divides the result by the number of replicas.
    assert queue["external"]["target"] == {"type": "Value", "value": "100"}
    query = queue["external"]["metric"]["query"]
    assert "count(count by (pod)" in query and 'namespace="ml",pod=~"models-predictor-.+"' in query
    assert query.endswith("or vector(0)")


@pytest.mark.parametrize(
    ("kind", "path", "key"),
    [
        ("runtime", ("spec",), "protocolVersions"),
        ("runtime", ("spec", "containers", 0), "readinessProbe"),
        ("service", ("spec", "predictor"), "minReplicas"),
        ("service", ("spec", "predictor", "autoScaling", "metrics", 1, "external", "metric"), "serverAddress"),
        ("service", ("spec", "canary", 0), "trafficPercent"),
    ],
)
def test_a_misspelt_key_is_found(kind: str, path: tuple[Any, ...], key: str) -> None:
    made = runtime(Runtime(image=IMAGE)) if kind == "runtime" else inference_service(SERVICE)
    document = deepcopy(valid(made))
    part: Any = document
    for step in path:
        part = part[step]
    part[f"{key}s"] = part.pop(key)
    with pytest.raises(Exception, match=key):
        manifests.check(document)


def test_the_command_writes_runtime_service_and_the_folder_of_the_service(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    archive = make(store=tmp_path / "model_store", name="a", config={"minWorkers": 2, "maxWorkers": 2})
    make(store=tmp_path / "model_store", name="other")
    (tmp_path / "deployment.yaml").write_text('models: {a: {versions: {"1.0": {}}}}\n')
    flags = ("--image", IMAGE, "--storage", "gs://b/m", "--deployment", "deployment.yaml", "--layout", "upload")
    ran = torchmar_here("export", "kserve", *flags, cwd=tmp_path)
    made, service = manifests.objects(ran.stdout)
    assert service["spec"]["predictor"]["model"]["runtime"] == made["metadata"]["name"]
    assert service["spec"]["predictor"]["model"]["resources"]["requests"]["cpu"] == "2"
    assert torchmar_here("export", "kserve", *flags, cwd=tmp_path).stdout == ran.stdout
    folder = tmp_path / "upload"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["config/config.properties", "model-store/a-1.0.mar"]
    assert (folder / "model-store" / "a-1.0.mar").read_bytes() == archive.read_bytes()
    written = properties.read(folder / "config" / "config.properties")
    assert written.get("model_store") == "/mnt/models/model-store" and written.get("load_models") == "a-1.0.mar"


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ((), 2, "--image"),
        (("--storage", "models"), 1, "--storage models: no URI"),
        (("--image", IMAGE, "--canary", "s3://b/c"), 2, "--canary"),
        (("--image", IMAGE, "--only-namespace"), 2, "--only-namespace"),
        (("--storage", "s3://b/m", "--queue", "100ms"), 2, "--queue"),
        (("--storage", "s3://b/m", "--service", "M"), 1, "--service M: no name"),
        (("--layout", "folder"), 2, "--layout"),
    ],
)
def test_options_that_do_not_fit_are_rejected(tmp_path: Path, flags: tuple[str, ...], code: int, message: str) -> None:
    assert message in torchmar_here("export", "kserve", *flags, cwd=tmp_path, code=code).stderr
    assert not list(tmp_path.iterdir())
