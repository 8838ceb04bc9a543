"""torchmar serve --platform follows the contracts of Vertex AI and SageMaker for containers."""

from __future__ import annotations

import base64
import http.server
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner

from tests.support.command import run_module, torchmar
from tests.support.waiting import until
from torchmar.cli.app import app_for
from torchmar.engines.addresses import free_ports
from torchmar.engines.server_records import ServerRecord

Make = Callable[..., Path]
Start = Callable[..., tuple[subprocess.Popen[str], str]]
JSON = {"Content-Type": "application/json"}
ONE_WORKER = {"minWorkers": 1, "maxWorkers": 1}
# As handlers of TorchServe's own are: a row has the input as data or body.
STOCK = """
class Handler:
    def initialize(self, context):
        import os, pathlib, time
        gate = os.environ.get("GATE")
        while gate and not pathlib.Path(gate).exists():
            time.sleep(0.05)

    def handle(self, rows, context):
        return [self.answer(row) for row in rows]

    def answer(self, row):
        value = (row.get("data") or row.get("body")) if isinstance(row, dict) else row
        return {"bytes": len(value)} if isinstance(value, (bytes, bytearray)) else {"value": value}
"""
# The model's name, and what SageMaker passes on.
SEES = """
import time

def handle(rows, context):
    if rows is None:
        return None
    answers = []
    for index, row in enumerate(rows):
        body = row.get("body")
        if body == b"sleep":  # as it was sent, as in AWS's containers
            time.sleep(1)
        seen = context.get_request_header(index, "X-Amzn-SageMaker-Custom-Attributes")
        context.set_response_header(index, "X-Amzn-SageMaker-Custom-Attributes", f"seen={seen}")
        answers.append({"model": context.model_name, "size": len(body), "type": type(body).__name__})
    return answers
"""


TOOLKIT = """
import json

def model_fn(model_dir):
    return 2

def input_fn(body, content_type):
    return json.loads(body)

def predict_fn(data, model):
    return sum(data) * model

def output_fn(prediction, accept):
    return f"{prediction} as {accept}"
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a container's command; it returns the process and the URL of its port."""
    running: list[subprocess.Popen[str]] = []

    def begin(platform: str, variable: str, *flags: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
        (port,) = free_ports(1)
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "torchmar", "serve", *flags],
            cwd=tmp_path,
            env={**os.environ, "TORCHMAR_PLATFORM": platform, variable: str(port), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process, f"http://127.0.0.1:{port}"

    yield begin
    for process in running:
        process.kill()
        process.wait()
    if record := ServerRecord.killed(tmp_path / ".torchmar"):
        record.stop()


def status(url: str) -> int:
    try:
        return requests.get(url, timeout=60).status_code
    except requests.ConnectionError:
        return 0


def test_vertex_gets_its_routes_and_the_envelope_of_googles_container(tmp_path: Path, make: Make, start: Start) -> None:
    torchmar("export", "vertex", make(STOCK, config=ONE_WORKER), "-o", "artifacts", cwd=tmp_path)
    health, predict = "/v1/endpoints/1/deployedModels/2", "/v1/endpoints/1/deployedModels/2:predict"
    process, url = start(
        "vertex",
        "AIP_HTTP_PORT",
        AIP_HEALTH_ROUTE=health,
        AIP_PREDICT_ROUTE=predict,
        AIP_STORAGE_URI="artifacts",
        GATE=str(tmp_path / "open"),
    )
    until(lambda: status(url + health) == 503)
    assert status(f"{url}/ping") == 500
    (tmp_path / "open").touch()
    until(lambda: status(url + health) == 200)
    encoded = {"b64": base64.b64encode(b"1234").decode()}
    instances = [{"data": encoded}, encoded, {"data": "text"}, {"body": [1, 2]}]
    answer = requests.post(url + predict, json={"instances": instances, "parameters": {"k": 1}}, timeout=60)
    values = [{"bytes": 4}, {"bytes": 4}, {"value": "text"}, {"value": [1, 2]}]
    assert (answer.status_code, answer.json()) == (200, {"predictions": values})
    # It listens on all interfaces, of which loopback has more than one address.
    assert status(url.replace("127.0.0.1", "127.0.0.2") + health) == 200
    described = requests.get(f"{url}/v1/models/model", timeout=60).json()
    assert described["ready"] is True
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    log = (tmp_path / "log").read_text()
    assert f"health checks at {health}, predictions at {predict}" in log
    assert "its requests have no tokens: every client that reaches port" in log


def test_a_model_of_a_url_that_does_not_load_is_never_healthy_and_its_traceback_is_in_the_log(
    tmp_path: Path, make: Make, start: Start
) -> None:
    broken = "def handle(rows, context):\n    raise ValueError('no weights here')\n"
    torchmar("export", "vertex", make(broken, config=ONE_WORKER), "-o", "artifacts", cwd=tmp_path)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "artifacts")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as bucket:
        threading.Thread(target=bucket.serve_forever).start()
        _, url = start("vertex", "AIP_HTTP_PORT", AIP_STORAGE_URI=f"http://127.0.0.1:{bucket.server_port}/")
        until(lambda: "no weights here" in (tmp_path / "log").read_text())
        bucket.shutdown()
    assert status(f"{url}/ping") == 503


def test_sagemaker_gets_its_paths_and_serves_the_content_of_model_tar_gz(
    tmp_path: Path, make: Make, start: Start
) -> None:
    archive = make(SEES, name="seer", config=ONE_WORKER)
    torchmar("export", "sagemaker", archive, "-o", "out", cwd=tmp_path)
    with tarfile.open(tmp_path / "out" / "model.tar.gz") as packed:
        packed.extractall(tmp_path / "ml" / "model", filter="data")
    first = free_ports(1)[0]
    process, url = start(
        "sagemaker",
        "SAGEMAKER_BIND_TO_PORT",
        SAGEMAKER_BASE_DIR="ml",
        SAGEMAKER_SAFE_PORT_RANGE=f"{first}-{first + 100}",
        SAGEMAKER_TS_BATCH_SIZE="4",
    )
    until(lambda: status(f"{url}/ping") == 200)
    answer = requests.post(
        f"{url}/invocations",
        data=b"x" * (10 << 20),
        headers={
            "Content-Type": "application/octet-stream",
            "Accept": "application/json",
            "X-Amzn-SageMaker-Custom-Attributes": "trace=1",
        },
        timeout=60,
    )
    assert (answer.status_code, answer.json()) == (200, {"model": "seer", "size": 10 << 20, "type": "bytearray"})
    assert answer.headers["X-Amzn-SageMaker-Custom-Attributes"] == "seen=trace=1"
    parameters = requests.get(f"{url}/execution-parameters", timeout=60).json()
    assert parameters == {"MaxConcurrentTransforms": 4, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": 6}
    assert requests.post(f"{url}/execution-parameters", timeout=60).status_code == 405
    assert requests.post(f"{url}/models", json={"model_name": "m", "url": "/m"}, timeout=60).status_code == 404
    ports = {
        record for record in (tmp_path / ".torchmar" / "config.properties").read_text().split() if "27.0.0.1" in record
    }
    assert all(first <= int(line.rpartition(":")[2]) <= first + 100 for line in ports if "_address=http" in line)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_a_package_of_sagemakers_toolkit_is_served_as_it_is(tmp_path: Path, start: Start) -> None:
    code = tmp_path / "ml" / "model" / "code"
    code.mkdir(parents=True)
    (code / "serve.py").write_text(TOOLKIT)
    (code / "requirements.txt").write_text("left-out==1\n")
    variables = {"SAGEMAKER_BASE_DIR": str(tmp_path / "ml"), "SAGEMAKER_TS_MIN_WORKERS": "1"}
    variables |= {"SAGEMAKER_TS_MAX_WORKERS": "1", "SAGEMAKER_PROGRAM": "serve.py"}
    variables["SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"] = "text/y"
    _, url = start("sagemaker", "SAGEMAKER_BIND_TO_PORT", **variables)
    until(lambda: status(f"{url}/ping") == 200)
    answer = requests.post(f"{url}/invocations", data="[1, 2]", headers={**JSON, "Accept": "text/x"}, timeout=60)
    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, "6 as text/x", "text/x")
    assert requests.post(f"{url}/invocations", data="[1, 2]", headers=JSON, timeout=60).text == "6 as text/y"
    until(lambda: "s_name_part0=torchmar" in (tmp_path / "log").read_text())  # the worker's own line may come later
    log = (tmp_path / "log").read_text()
    assert "it has no manifest: torchmar_handlers.sagemaker runs its functions" in log
    assert "code/requirements.txt is not installed:" in log
    assert log.count("s_name_part0=torchmar") == 1  # one worker


@pytest.fixture
def endpoint(tmp_path: Path, make: Make, start: Start) -> str:
    """Start a multi-model endpoint beside the folders of models; return its URL."""
    fails = {"broken": "raise ValueError('broken')", "killed": "import os; os.kill(os.getpid(), 9)"}
    for name in ("a", "b", *fails):
        code = f"def handle(rows, context):\n    {fails[name]}\n" if name in fails else SEES
        content = tmp_path / "ml" / "models" / name / "model"
        content.mkdir(parents=True)
        archive = make(code, name=f"archive-{name}", config=ONE_WORKER)
        if name == "b":  # as the archive itself
            shutil.copy(archive, content)
        else:
            shutil.unpack_archive(archive, content, "zip")
    variables = {"SAGEMAKER_BASE_DIR": str(tmp_path / "ml"), "SAGEMAKER_MULTI_MODEL": "true"}
    _, url = start("sagemaker", "SAGEMAKER_BIND_TO_PORT", **variables)
    until(lambda: status(f"{url}/ping") == 200)
    return url


def test_sagemaker_loads_lists_invokes_and_unloads_models(tmp_path: Path, endpoint: str) -> None:
    models = f"{endpoint}/models"

    def load(name: str, folder: str | Path | None = None) -> int:
        document = {"model_name": name, "url": str(folder or tmp_path / "ml" / "models" / name / "model")}
        headers = {"X-Amzn-SageMaker-Target-Model": f"{name}.tar.gz"}
        return requests.post(models, json=document, headers=headers, timeout=120).status_code

    assert requests.get(models, timeout=60).json() == {"models": []}
    assert requests.get(f"{models}/a", timeout=60).status_code == 404
    assert requests.post(f"{models}/a/invoke", json={}, timeout=60).status_code == 404
    assert requests.delete(f"{models}/a", timeout=60).status_code == 404
    assert [load("a"), load("b")] == [200, 200]
    assert load("a") == 409
    invoked = requests.post(f"{models}/b/invoke", data=b"[1,2]", headers=JSON, timeout=60)
    assert (invoked.status_code, invoked.json()) == (200, {"model": "b", "size": 5, "type": "bytearray"})
    one = {"modelName": "a", "modelUrl": str(tmp_path / "ml" / "models" / "a" / "model")}
    assert requests.get(f"{models}/a", timeout=60).json() == one
    page = requests.get(models, params={"limit": 1}, timeout=60).json()
    assert page == {"nextPageToken": "1", "models": [one]}
    rest = requests.get(models, params={"limit": 1, "next_page_token": page["nextPageToken"]}, timeout=60).json()
    assert [model["modelName"] for model in rest["models"]] == ["b"] and "nextPageToken" not in rest
    # What cannot be loaded, and leaves nothing behind.
    assert load("broken") == 500
    assert load("killed") == 507  # as the kernel does if the memory does not suffice
    assert load("nowhere") == 404
    assert load("elsewhere", tmp_path) == 404
    assert load("elsewhere", tmp_path / "ml" / "models" / ".." / "..") == 404
    huge = tmp_path / "ml" / "models" / "huge" / "model"
    shutil.copytree(tmp_path / "ml" / "models" / "a" / "model", huge)
    with (huge / "weights.bin").open("wb") as sparse:
        sparse.truncate(1 << 42)
    response = requests.post(models, json={"model_name": "huge", "url": str(huge)}, timeout=60)
    assert response.status_code == 507 and "Insufficient memory: the model needs" in response.text
    for body in (b"{", b"[]", b'{"model_name": "x"}', b'{"model_name": 1, "url": "/x"}'):
        assert requests.post(models, data=body, timeout=60).status_code == 400
    assert requests.put(models, timeout=60).status_code == 405
    assert [model["modelName"] for model in requests.get(models, timeout=60).json()["models"]] == ["a", "b"]
    assert "model a is a.tar.gz" in (tmp_path / "log").read_text()


def test_loads_and_unloads_of_one_model_at_once_are_one_after_another(
    tmp_path: Path, make: Make, endpoint: str
) -> None:
    models, url = f"{endpoint}/models", str(tmp_path / "ml" / "models" / "a" / "model")
    started, gate = tmp_path / "started", tmp_path / "gate"
    waits = f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\n"
    waits += f"while not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.02)\n{SEES}"
    slow = tmp_path / "ml" / "models" / "slow"
    shutil.unpack_archive(make(waits, name="slow", config=ONE_WORKER), slow, "zip")

    def load(url: str, name: str) -> int:
        return requests.post(models, json={"model_name": name, "url": url}, timeout=120).status_code

    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            assert sorted(threads.map(partial(load, url), ["a"] * 6)) == [200, *[409] * 5]
            unloaded = threads.map(lambda _: requests.delete(f"{models}/a", timeout=120).status_code, range(4))
            assert sorted(unloaded) == [200, *[404] * 3]
        loading = threads.submit(load, str(slow), "slow")
        until(started.exists)
        unloading = threads.submit(requests.delete, f"{models}/slow", timeout=120)
        again = threads.submit(load, str(slow), "slow")
        time.sleep(0.3)
        assert not unloading.done() and not again.done()
        gate.touch()
        assert (loading.result(), unloading.result().status_code) == (200, 200)
        # The third comes after the unload or before it.
        if again.result() == 200:
            assert requests.delete(f"{models}/slow", timeout=120).status_code == 200
        broken = url.replace("/a/", "/broken/")
        assert list(threads.map(partial(load, broken), ["broken"] * 3)) == [500] * 3
    assert requests.get(models, timeout=60).json() == {"models": []}


def test_a_model_is_unloaded_when_its_requests_are_answered(tmp_path: Path, endpoint: str) -> None:
    models, url = f"{endpoint}/models", str(tmp_path / "ml" / "models" / "a" / "model")
    for _ in range(2):  # it can be loaded again
        loaded = requests.post(models, json={"model_name": "a", "url": url}, timeout=120)
        assert loaded.status_code == 200, loaded.text
        codes: list[int] = []

        def invoke(codes: list[int] = codes) -> None:
            codes.append(requests.post(f"{models}/a/invoke", data=b"sleep", headers=JSON, timeout=60).status_code)

        threads = [threading.Thread(target=invoke) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)  # some of them are at the worker
        unloaded = requests.delete(f"{models}/a", timeout=60)
        for thread in threads:
            thread.join()
        # A request that came after the model was removed gets 404, and none is lost.
        assert unloaded.status_code == 200 and set(codes) <= {200, 404} and 200 in codes
        assert requests.post(f"{models}/a/invoke", json={}, timeout=60).status_code == 404


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TORCHMAR_PLATFORM": "vertex"}, "model_store has none"),
        ({"TORCHMAR_PLATFORM": "vertex", "AIP_HTTP_PORT": "http"}, "AIP_HTTP_PORT=http: not a port"),
        ({"TORCHMAR_PLATFORM": "vertex", "AIP_STORAGE_URI": "."}, "AIP_STORAGE_URI=.: it has no model.mar"),
        ({"TORCHMAR_PLATFORM": "vertex", "AIP_PREDICT_ROUTE": "/ping"}, "would hide paths of the server's APIs"),
        ({"TORCHMAR_PLATFORM": "vertex", "AIP_HEALTH_ROUTE": "ok"}, "AIP_HEALTH_ROUTE=ok: not a path"),
        (
            {"TORCHMAR_PLATFORM": "sagemaker", "SAGEMAKER_BASE_DIR": "opt"},
            "opt/model has no archive, no code/ and no weights",
        ),
        ({"TORCHMAR_PLATFORM": "vertex", "AIP_PREDICT_ROUTE": "/predictions/a,b"}, "'a,b' cannot be a model's name"),
        ({"TORCHMAR_PLATFORM": "vertex", "AIP_STORAGE_URI": "gs://b/x,y"}, "has a comma"),
        ({"TORCHMAR_PLATFORM": "sagemaker", "SAGEMAKER_SAFE_PORT_RANGE": "1-2"}, "no range of four ports"),
        ({"TORCHMAR_PLATFORM": "sagemaker", "SAGEMAKER_MULTI_MODEL": "1"}, "neither true nor false"),
        ({"TORCHMAR_PLATFORM": "sagemaker", "SAGEMAKER_MODEL_SERVER_WORKERS": "0"}, "not a whole number of at least 1"),
    ],
)
def test_a_wrong_environment_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    (tmp_path / "opt" / "model").mkdir(parents=True)
    (tmp_path / "opt" / "model" / "model.bin").touch()
    (tmp_path / "model_store").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app_for(["serve"]), ["serve"])
    assert (result.exit_code, message in " ".join(result.output.split())) == (1, True), result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / ".torchmar" / "config.properties").exists()


def test_a_variable_of_a_platform_suggests_it_and_changes_nothing(tmp_path: Path) -> None:
    ran = run_module("torchmar", "serve", cwd=tmp_path, environment={**os.environ, "AIP_HTTP_PORT": "8080"})
    assert ran.returncode == 1 and "model_store is not a folder" in ran.stderr
    assert "AIP_HTTP_PORT is set, and has no effect without --platform vertex" in ran.stderr


def test_a_platform_takes_no_options_for_what_it_decides(tmp_path: Path) -> None:
    ran = torchmar("serve", "--platform", "vertex", "--port", "9000", cwd=tmp_path, code=2)
    assert "the platform decides on models and addresses" in " ".join(ran.stderr.replace("│", " ").split())
