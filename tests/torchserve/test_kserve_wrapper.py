"""The built-in server on KServe's layout answers as TorchServe behind KServe's wrapper, which runs here.

``TORCHMAR_KSERVE_WRAPPER`` names ``kubernetes/kserve/kserve_wrapper`` of a clone of https://github.com/pytorch/serve.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil
import pytest
import requests

from tests import oracles
from tests.support import torchserve_messages
from tests.support.preloaded import environment_of_started
from tests.support.waiting import until
from torchmar.engines import java
from torchmar.engines.addresses import free_ports
from torchmar.grpc.wire import open_inference_pb2 as wire

pytestmark = [pytest.mark.oracle, pytest.mark.unforked]

# Written for TorchServe's envelopes: a row is one of the instances, or of the inputs.
HANDLER = """
class Handler:
    def initialize(self, context):
        pass

    def handle(self, rows, context):
        return [row["data"] if isinstance(row, dict) else row for row in rows]
"""
ENTRY = {"defaultVersion": True, "marName": "echo.mar", "minWorkers": 1, "maxWorkers": 1}
ENTRY |= {"batchSize": 1, "maxBatchDelay": 1, "responseTimeout": 60}
SNAPSHOT = {"name": "startup.cfg", "modelCount": 1, "models": {"echo": {"1.0": ENTRY}}}
TENSOR = {"name": "input-0", "shape": [2, 2], "datatype": "FP32", "data": [1.5, 2.5, 3.5, 4.5]}
TEXT = {"name": "input-0", "shape": [1], "datatype": "BYTES", "data": ["aGVsbG8="]}
V1 = [("POST", "/v1/models/echo:predict", {"instances": instances}) for instances in ([[1, 2]], ["a", {"data": 3}], [])]
V1 += [
    ("POST", "/v1/models/echo:explain", {"instances": [{"data": [1, 2]}]}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/echo", None),
    ("GET", "/v1/models/none", None),
    ("POST", "/v1/models/none:predict", {"instances": [1]}),
    ("GET", "/", None),
]
V2: list[tuple[str, str, Any]] = [
    ("POST", "/v2/models/echo/infer", {"id": "7", "inputs": [TENSOR]}),
    ("POST", "/v2/models/echo/infer", {"id": "8", "inputs": [TEXT]}),
    ("POST", "/v2/models/echo/infer", {"id": "9", "inputs": [TENSOR, {**TENSOR, "name": "input-1"}]}),
    ("GET", "/v2/models/echo/ready", None),
    ("GET", "/v2/health/live", None),
    ("GET", "/v2/health/ready", None),
    ("POST", "/v2/models/none/infer", {"inputs": [TENSOR]}),
]


class Side(NamedTuple):
    """Where a side listens: REST, and gRPC."""

    url: str
    grpc: str


@contextlib.contextmanager
def both(folder: Path, store: Path, protocol: str) -> Iterator[tuple[Side, Side]]:
    """Start TorchServe behind the wrapper, and the built-in server, on one layout."""
    wrapper = os.environ.get("TORCHMAR_KSERVE_WRAPPER", "")
    if not Path(wrapper, "__main__.py").is_file():
        pytest.skip("TORCHMAR_KSERVE_WRAPPER does not name the folder of KServe's wrapper, which is in no package")
    python = oracles.python_of("kserve_wrapper")
    inference, management, metrics, rpc, rpc_management, rest, wrapped = free_ports(7)
    ours = free_ports(5)
    config = folder / "config.properties"
    lines = {
        "inference_address": f"http://127.0.0.1:{inference}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_port": rpc,
        "grpc_management_port": rpc_management,
        "enable_envvars_config": "true",
        "disable_token_authorization": "true",
        "model_store": store,
        "model_snapshot": json.dumps(SNAPSHOT),
    }
    config.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    environment = {
        **environment_of_started(),
        "JAVA_HOME": str(java.find().executable.parent.parent),
        "TMPDIR": str(folder),
        "TEMP": str(folder),
        "TS_SERVICE_ENVELOPE": "kserve" if protocol == "v1" else "kservev2",
        "PROTOCOL_VERSION": protocol,
        "CONFIG_PATH": str(config),
        "MODEL_LOAD_DELAY": "1",
        "MODEL_LOAD_MAX_TRY": "100",
    }
    variables = {
        "TS_INFERENCE_ADDRESS": f"http://127.0.0.1:{ours[0]}",
        "TS_MANAGEMENT_ADDRESS": f"http://127.0.0.1:{ours[1]}",
        "TS_METRICS_ADDRESS": f"http://127.0.0.1:{ours[2]}",
        "TS_GRPC_INFERENCE_PORT": str(ours[3]),
        "TS_GRPC_MANAGEMENT_PORT": str(ours[4]),
    }
    script = Path(oracles.__file__).with_name("kserve_wrapper.py")
    messages = torchserve_messages.write(folder / "messages")
    theirs = ["--start", "--foreground", "--ncs", "--model-store", store, "--ts-config", config]
    flags = ["--platform", "kserve", "--config", config, "--model-store", store, "--run-folder", folder / "run"]
    commands: list[tuple[list[Any], dict[str, str]]] = [
        ([sys.executable, "-m", "ts.model_server", *theirs], {}),
        ([python, script, wrapper, messages, rest, wrapped], {}),
        ([sys.executable, "-m", "torchmar", "serve", *flags], variables),
    ]
    running = [
        subprocess.Popen(
            [*map(str, command)],
            cwd=folder,
            env={**environment, **more},
            stdout=(folder / f"{number}.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        for number, (command, more) in enumerate(commands)
    ]
    sides = (
        Side(f"http://127.0.0.1:{rest}", f"127.0.0.1:{wrapped}"),
        Side(variables["TS_INFERENCE_ADDRESS"], f"127.0.0.1:{ours[3]}"),
    )
    try:
        until(lambda: all(ready(side.url) for side in sides), seconds=180)
        yield sides
    finally:
        tree = [each for process in running for each in psutil.Process(process.pid).children(recursive=True)]
        for process in running:
            process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([*tree, *(psutil.Process(process.pid) for process in running)], timeout=20)
        for each in alive:
            each.kill()


def ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/v2/models/echo/ready", timeout=10).status_code == 200
    except requests.RequestException:
        return False


@pytest.fixture
def store(tmp_path: Path, make: Callable[..., Path]) -> Path:
    folder = tmp_path / "model-store"
    folder.mkdir()
    make(HANDLER, name="echo").rename(folder / "echo.mar")
    return folder


def answers(side: Side, request: tuple[str, str, Any]) -> tuple[int, Any]:
    """Return status and document; of an error only the class of the status, since the wrapper writes its own texts."""
    method, path, body = request
    answer = requests.request(method, side.url + path, json=body, timeout=60)
    document = answer.json()
    if answer.status_code >= 400:
        return answer.status_code // 100, None
    if isinstance(document, dict):
        # The built-in server adds TensorFlow Serving's states; the wrapper writes what is not there as null.
        document.pop("model_version_status", None)
        document.pop("model_version", None)
        document = {key: value for key, value in document.items() if value is not None}
        for output in document.get("outputs", []):
            output.pop("parameters", None)
    return answer.status_code, document


@pytest.mark.parametrize(("protocol", "cases"), [("v1", V1), ("v2", V2)])
def test_rest_is_that_of_the_wrapper(tmp_path: Path, store: Path, protocol: str, cases: list[Any]) -> None:
    with both(tmp_path, store, protocol) as (theirs, ours):
        assert [answers(ours, case) for case in cases] == [answers(theirs, case) for case in cases]


def test_grpc_is_that_of_the_wrapper(tmp_path: Path, store: Path) -> None:
    floats = wire.ModelInferRequest(model_name="echo", id="7")
    floats.inputs.add(name="input-0", datatype="FP32", shape=[2]).contents.fp32_contents.extend([1.5, 2.5])
    image = wire.ModelInferRequest(model_name="echo", id="8")
    image.inputs.add(name="input-0", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"\x89PNG")
    with both(tmp_path, store, "grpc-v2") as sides:
        for sent in (floats, image):
            theirs, ours = (_infer(side.grpc, sent) for side in sides)
            assert (ours.id, ours.model_name, list(ours.outputs)) == (
                theirs.id,
                theirs.model_name,
                list(theirs.outputs),
            )


def _infer(address: str, sent: wire.ModelInferRequest) -> wire.ModelInferResponse:
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            wire.ModelInferRequest.SerializeToString,
            wire.ModelInferResponse.FromString,
        )
        return infer(sent, timeout=60)
