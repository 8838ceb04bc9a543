"""The layout of KServe's TorchServe runtime is served unchanged by the command of the exported runtime."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from tests.support.waiting import until
from torchmar import platforms
from torchmar.engines.addresses import free_ports
from torchmar.engines.server_records import ServerRecord
from torchmar.errors import TorchmarError
from torchmar.exporting.kserve import Runtime, runtime
from torchmar.grpc.wire import open_inference_pb2 as wire
from torchmar.platforms import kserve
from torchmar.properties import Properties

Make = Callable[..., Path]
Start = Callable[..., None]
# A handler that is written for TorchServe's envelopes of KServe: rows are instances, or inputs.
HANDLER = """
class Handler:
    def initialize(self, context):
        pass

    def handle(self, rows, context):
        return [row["data"] if isinstance(row, dict) else row for row in rows]
"""
SNAPSHOT = {
    "name": "startup.cfg",
    "modelCount": 1,
    "models": {
        "echo": {
            "1.0": {
                "defaultVersion": True,
                "marName": "echo.mar",
                "minWorkers": 1,
                "maxWorkers": 5,
                "batchSize": 5,
                "maxBatchDelay": 10,
                "responseTimeout": 60,
            }
        }
    },
}
# As in KServe's documentation; the ports of this machine are set by variables.
CONFIGURATION = f"""\
inference_address=http://127.0.0.1:8085
management_address=http://127.0.0.1:8085
metrics_address=http://127.0.0.1:8082
grpc_inference_port=7070
grpc_management_port=7071
enable_envvars_config=true
install_py_dep_per_model=true
enable_metrics_api=true
metrics_mode=prometheus
NUM_WORKERS=1
number_of_netty_threads=4
job_queue_size=10
load_models=all
model_store=/mnt/models/model-store
model_snapshot={json.dumps(SNAPSHOT)}
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that runs a container's command with these variables."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(command: list[str], environment: Mapping[str, str]) -> None:
        program = {"torchmar": "torchmar", "torchmar-serve": "torchmar.cli.torchserve_flags"}[command[0]]
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", program, *command[1:]],
                cwd=tmp_path,
                env={**os.environ, **environment, "TORCHMAR_RUN_FOLDER": str(tmp_path / "run")},
                stdout=(tmp_path / "log").open("wb"),
                stderr=subprocess.STDOUT,
            )
        )

    yield begin
    for process in running:
        process.kill()
        process.wait()
    if record := ServerRecord.killed(tmp_path / "run"):
        record.stop()


@pytest.fixture
def layout(tmp_path: Path, make: Make) -> Path:
    """Return /mnt/models as the storage initializer leaves it."""
    models = tmp_path / "models"
    (models / "config").mkdir(parents=True)
    (models / "config" / "config.properties").write_text(CONFIGURATION)
    (models / "model-store").mkdir()
    make(HANDLER, name="echo").rename(models / "model-store" / "echo.mar")
    return models


def command_of(container: Mapping[str, Any], models: Path) -> list[str]:
    """Return the command of the runtime's container, with another folder in place of /mnt/models."""
    return [word.replace("/mnt/models", str(models)) for word in (*container["command"], *container["args"])]


def ports() -> tuple[dict[str, str], str, str]:
    """Return variables with free ports, and the addresses of REST and gRPC."""
    rest, management, metrics, rpc, rpc_management = free_ports(5)
    variables = {
        "TS_INFERENCE_ADDRESS": f"http://0.0.0.0:{rest}",
        "TS_MANAGEMENT_ADDRESS": f"http://127.0.0.1:{management}",
        "TS_METRICS_ADDRESS": f"http://0.0.0.0:{metrics}",
        "TS_GRPC_INFERENCE_PORT": str(rpc),
        "TS_GRPC_MANAGEMENT_PORT": str(rpc_management),
    }
    return variables, f"http://127.0.0.1:{rest}", f"127.0.0.1:{rpc}"


def status(url: str) -> int:
    try:
        return requests.get(url, timeout=60).status_code
    except requests.ConnectionError:
        return 0


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_the_layout_is_served_unchanged_by_the_runtimes_command(layout: Path, start: Start, protocol: str) -> None:
    (container,) = runtime(Runtime(image="torchmar"))["spec"]["containers"]
    variables, url, address = ports()
    # KServe's template writes this where the service has no such label.
    start(
        command_of(container, layout), {**variables, "TS_SERVICE_ENVELOPE": "<no value>", "PROTOCOL_VERSION": protocol}
    )
    until(lambda: status(url + container["readinessProbe"]["httpGet"]["path"]) == 200)
    assert status(url + container["livenessProbe"]["httpGet"]["path"]) == 200
    assert requests.get(f"{url}/v1/models", timeout=60).json() == {"models": ["echo"]}
    assert requests.get(f"{url}/v1/models/echo", timeout=60).json()["ready"] is True
    assert requests.get(f"{url}/v2/models/echo/ready", timeout=60).json() == {"name": "echo", "ready": True}
    if protocol == "v1":
        body = {"instances": [{"data": [1, 2]}, {"data": "text"}]}
        answer = requests.post(f"{url}/v1/models/echo:predict", json=body, timeout=60)
        assert (answer.status_code, answer.json()) == (200, {"predictions": [[1, 2], "text"]})
        assert requests.post(f"{url}/v1/models/echo:explain", json=body, timeout=60).json() == {
            "explanations": [[1, 2], "text"]
        }
        assert requests.post(f"{url}/v1/models/none:predict", json=body, timeout=60).status_code == 404
        return
    tensor = {"name": "input-0", "shape": [3], "datatype": "INT64", "data": [1, 2, 3]}
    answer = requests.post(f"{url}/v2/models/echo/infer", json={"id": "7", "inputs": [tensor]}, timeout=60)
    assert (answer.status_code, answer.json()["id"], answer.json()["outputs"]) == (200, "7", [tensor])
    # Bytes are in base64 for handlers behind the wrapper.
    sent = wire.ModelInferRequest(model_name="echo", id="8")
    part = sent.inputs.add(name="input-0", datatype="BYTES", shape=[1])
    part.contents.bytes_contents.append(b"\x89PNG")
    received = _infer(address, sent)
    assert (received.id, received.model_name) == ("8", "echo")
    assert list(received.outputs[0].contents.bytes_contents) == [base64.b64encode(b"\x89PNG")]


def _infer(address: str, sent: wire.ModelInferRequest) -> wire.ModelInferResponse:
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            wire.ModelInferRequest.SerializeToString,
            wire.ModelInferResponse.FromString,
        )
        return infer(sent, timeout=60)


def test_handlers_of_torchmar_answer_both_protocols_in_any_envelope(
    layout: Path, start: Start, make: Make, tmp_path: Path
) -> None:
    import torch

    weights = tmp_path / "double.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1, 2)), weights)
    made = make(name="echo", handler="torchmar_handlers.tensors", weights="e.pt", disk={"e.pt": weights.read_bytes()})
    made.replace(layout / "model-store" / "echo.mar")
    (container,) = runtime(Runtime(image="torchmar"))["spec"]["containers"]
    variables, url, address = ports()
    start(command_of(container, layout), {**variables, "TS_SERVICE_ENVELOPE": "kservev2", "PROTOCOL_VERSION": "v2"})
    until(lambda: status(f"{url}/v2/health/ready") == 200)

    def first(number: int) -> Any:
        body = {"instances": [[number, 1], [number, 2]]}
        return requests.post(f"{url}/v1/models/echo:predict", json=body, timeout=60).json()

    # In batches of five: the envelope would put one request into each.
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(first, range(20)))
    assert answers == [{"predictions": [[number, 1], [number, 2]]} for number in range(20)]
    tensor = {"name": "input", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}
    answer = requests.post(f"{url}/v2/models/echo/infer", json={"inputs": [tensor]}, timeout=60).json()
    assert answer["outputs"][0]["data"] == [1, 2, 3, 4]
    sent = wire.ModelInferRequest(model_name="echo")
    sent.inputs.add(name="input", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([5, 6])
    assert list(_infer(address, sent).outputs[0].contents.fp32_contents) == [5, 6]


def demands(values: Mapping[str, str], environment: Mapping[str, str], store: Path) -> Mapping[str, str]:
    return kserve.demands(environment, Properties(None, {"model_store": str(store), **values})).values


def test_the_ports_are_the_wrappers_and_management_stays_inside(tmp_path: Path) -> None:
    values = demands({"management_address": "http://0.0.0.0:8081"}, {}, tmp_path)
    assert values["inference_address"] == "http://0.0.0.0:8080"
    assert (values["grpc_inference_address"], values["grpc_inference_port"]) == ("0.0.0.0", "8081")
    assert values["management_address"] == "http://127.0.0.1:8085"  # 8081 is gRPC's
    assert values["metrics_address"] == "http://0.0.0.0:8082"
    assert values["disable_token_authorization"] == "true" and values["load_models"] == "all"


def test_tokens_that_are_configured_stay(tmp_path: Path) -> None:
    for values in ({"disable_token_authorization": "false"}, {"torchmar_inference_token_file": "t"}):
        assert "disable_token_authorization" not in demands(values, {}, tmp_path)


@pytest.mark.parametrize(
    ("values", "environment", "envelope"),
    [
        ({}, {}, None),
        ({}, {"TS_SERVICE_ENVELOPE": "kserve"}, None),  # not read, as for TorchServe
        ({"enable_envvars_config": "true"}, {"TS_SERVICE_ENVELOPE": "kservev2"}, "kservev2"),
        ({"enable_envvars_config": "true"}, {"TS_SERVICE_ENVELOPE": "<no value>"}, "kserve"),
        ({"enable_envvars_config": "true"}, {"TS_SERVICE_ENVELOPE": "", "PROTOCOL_VERSION": "grpc-v2"}, "kservev2"),
        ({"service_envelope": "body"}, {"PROTOCOL_VERSION": "v2"}, "body"),
    ],
)
def test_the_envelope_is_the_configured_one_or_that_of_the_protocol(
    tmp_path: Path, values: dict[str, str], environment: dict[str, str], envelope: str | None
) -> None:
    assert demands(values, environment, tmp_path).get("service_envelope") == envelope


def test_the_mounted_configuration_is_used_without_a_flag(layout: Path) -> None:
    file = layout / "config" / "config.properties"
    assert platforms.config_file("kserve", {"CONFIG_PATH": str(file)}) == file
    assert platforms.config_file("kserve", {"CONFIG_PATH": str(layout / "none")}) is None
    assert platforms.config_file("vertex", {"CONFIG_PATH": str(file)}) is None


def test_an_unknown_protocol_and_a_missing_store_are_named(tmp_path: Path) -> None:
    with pytest.raises(TorchmarError, match="PROTOCOL_VERSION=v3"):
        demands({}, {"PROTOCOL_VERSION": "v3"}, tmp_path)
    with pytest.raises(TorchmarError, match="is not a folder"):
        demands({}, {}, tmp_path / "none")
