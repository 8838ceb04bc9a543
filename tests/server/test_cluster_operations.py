"""A cluster in operation: placement, environments, stages, logs, metrics, access, failures, commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.command import torchmar
from tests.support.packing import pack_handler
from tests.support.ray_cluster import LOOPBACK, RayCluster, ray_cluster, sleeping, start_front
from tests.support.servers import write_config
from tests.support.waiting import until
from tests.support.wheels import lock_of, write_wheel
from torchmar import archive
from torchmar.archive import file_digest
from torchmar.cluster.processes import ClusterGroup, node_addresses
from torchmar.engines.builtin import Builtin
from torchmar.engines.ray import Ray
from torchmar.errors import ServerError
from torchmar.load import results
from torchmar.load.results import Report
from torchmar.parity import EnginePair
from torchmar.parity.cases import Case
from torchmar.parity.engine_client import EngineClient

pytestmark = [pytest.mark.oracle, pytest.mark.unforked]
ECHO = """
import os
import time

def handle(rows, context):
    if rows is None:
        return None
    print("a line of the handler", flush=True)
    time.sleep(0.02)
    return [{"id": context.get_request_id(index), "pid": os.getpid()} for index in range(len(rows))]
"""
ANSWER = '{"id": context.get_request_id(index), "pid": os.getpid()}'
OWN = """
import sys, tiny

def handle(rows, context):
    return None if rows is None else [{"tiny": tiny.VALUE, "prefix": sys.prefix} for _ in rows]
"""
STAGED = """
import os

class Handler:
    def initialize(self, context):
        self.initialized = True

    def preprocess(self, rows):
        self.first = os.getpid()
        return [self.first for row in rows]

    def inference(self, data):
        return [(first, os.getpid()) for first in data]

    def postprocess(self, data):
        return [{"pids": list(pair)} for pair in data]

    def handle(self, rows, context):
        return self.postprocess(self.inference(self.preprocess(rows)))
"""
CRASH = """
import os

def handle(rows, context):
    if rows is None:
        return None
    os._exit(3)
"""

FRAGILE = """
import os

def handle(rows, context):
    if os.path.exists({flag!r}):
        raise RuntimeError("the weights have gone")
    return None if rows is None else [str(os.getpid()) for row in rows]
"""


def pack(store: Path, name: str, code: str, version: str = "1.0", **keys: Any) -> str:
    keys["config"] = {"minWorkers": 1, "maxWorkers": 1, "deviceType": "cpu", **keys.get("config", {})}
    return pack_handler(store, code, name=name, version=version, **keys).name


def placed(**replica: Any) -> dict[str, Any]:
    return {"config": {"torchmar": {"replica": replica}}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("operations") / "store"
    store.mkdir()
    pack(store, "echo", ECHO)
    pack(store, "echo", ECHO, "2.0")
    pack(store, "ssd", ECHO, **placed(cpus=0.5, resources={"ssd": 1}))
    pack(store, "half", ECHO, **placed(cpus=0.5, gpus=0.5))
    pack(store, "large", ECHO, **placed(cpus=64, memory="2TiB"))
    pack(store, "crash", CRASH, config={"maxRetryTimeoutInSec": 3})
    pack(store, "sleepy", sleeping(0.5))
    flag = str(store.parent / "flag")
    pack(store, "fragile", FRAGILE.format(flag=flag), config={"maxRetryTimeoutInSec": 1})
    pack(store, "queue", ECHO, config={"minWorkers": 1, "maxWorkers": 3, "torchmar": {"replica": {"cpus": 0.5}}})
    pack(store, "staged", STAGED, config={"stages": {"preprocess": 1, "inference": 1}})
    place = store.parent / "own-1.0"
    wheel = write_wheel(place / "wheels", "tiny", "1.0", "VALUE = '1.0'\n")
    (place / "lock.txt").write_text(lock_of(wheel))
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    own = {"python": here, "requirements": "lock.txt", "wheels": "wheels", "server_packages": True}
    pack(store, "own", OWN, folder=place, runtime=own)
    return store


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(2, {"num_cpus": 3, "resources": {"ssd": 2}}, {"num_cpus": 2, "num_gpus": 1}) as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store: Path, cluster: RayCluster) -> Iterator[Ray]:
    folder = tmp_path_factory.mktemp("front")
    keys = {
        "torchmar_access_log": "true",
        "install_py_dep_per_model": "true",
        "torchmar_venv_folder": str(folder / "venvs"),
        "allowed_urls": "http://127.0.0.1.*",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LOOPBACK.items():
            patch.setenv(name, value)
        with start_front(cluster, folder, store, **keys) as running:
            yield running


def post(server: Ray, name: str) -> requests.Response:
    return requests.post(f"{server.server.inference}/predictions/{name}", b"x", headers=bearer(server), timeout=60)


def bearer(server: Ray, api: str = "inference") -> dict[str, str]:
    assert server.server.key_file
    key = json.loads(server.server.key_file.read_text())[api]["key"]
    return {"Authorization": f"Bearer {key}"}


def run(python: Path | str, folder: Path, *arguments: object, **variables: str) -> str:
    """Return what a command prints; measurements on a busy machine are invalid, and their exit code is 1."""
    command = [python, "-m", "torchmar", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80", **variables}
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    assert ran.stdout and "Traceback" not in ran.stderr, ran.stderr
    return ran.stdout


def bench(python: Path | str, folder: Path, *arguments: object, **variables: str) -> Report:
    quick = ("--duration", "1.5", "--warmup", "0", "--json")
    return results.parse(json.loads(run(python, folder, "bench", *arguments, *quick, **variables)))


def described(server: Ray, name: str) -> dict[str, Any]:
    url = f"{server.server.management}/models/{name}"
    return dict(requests.get(url, headers=bearer(server, "management"), timeout=60).json()[0])


def logged(server: Ray, file: str) -> str:
    return (server.folder / "logs" / file).read_text()


@pytest.fixture
def echo(server: Ray) -> Iterator[None]:
    server.management.register("echo-1.0.mar", initial_workers=1, timeout=120)
    yield
    server.management.unregister("echo")


def test_replicas_are_placed_by_what_the_archive_asks_for(server: Ray) -> None:
    server.management.register("ssd-1.0.mar", timeout=120)
    server.management.scale("ssd", min_worker=2, max_worker=2, timeout=120)
    assert len({worker["node"] for worker in described(server, "ssd")["workers"]}) == 1
    with pytest.raises(ServerError, match=r"3 replicas need 0.5 CPUs, 1 ssd each, and there is room for 2"):
        server.management.scale("ssd", min_worker=3, max_worker=3, timeout=120)
    assert server.management.describe("ssd")[0].ready == 2
    server.management.unregister("ssd")
    with pytest.raises(ServerError, match=r"a replica needs 64 CPUs, 2048.0 GiB of memory, and no node has as much"):
        server.management.register("large-1.0.mar", timeout=120)


def test_replicas_share_a_gpu_and_say_which(server: Ray) -> None:
    server.management.register("half-1.0.mar", timeout=120)
    server.management.scale("half", min_worker=2, max_worker=2, timeout=120)
    workers = described(server, "half")["workers"]
    assert [(worker["gpu"], worker["device"]) for worker in workers] == [(True, "gpu 0")] * 2
    with pytest.raises(ServerError, match=r"0.5 GPUs each, and there is room for 2"):
        server.management.scale("half", min_worker=3, max_worker=3, timeout=120)
    server.management.unregister("half")


def test_an_archive_with_a_runtime_runs_in_its_own_environment(server: Ray) -> None:
    pytest.importorskip("uv")
    server.management.register("own-1.0.mar", timeout=300)
    answer = post(server, "own").json()
    assert answer["tiny"] == "1.0" and "/venvs/" in answer["prefix"]
    server.management.unregister("own")


def test_stages_are_processes_of_the_replica(server: Ray) -> None:
    server.management.register("staged-1.0.mar", timeout=120)
    pids = post(server, "staged").json()["pids"]
    assert len(set(pids)) == 2
    document = described(server, "staged")
    (first,), (model,) = document["stages"]["preprocess"], document["workers"]
    assert [first["pid"], model["pid"]] == pids
    assert (first["node"], first["device"], first["status"]) == (model["node"], "cpu", "READY")
    until(lambda: described(server, "staged")["stages"]["preprocess"][0]["memoryUsage"] > 0)
    server.management.unregister("staged")


def test_requests_keep_their_ids_and_lines_of_handlers_reach_the_logs(server: Ray, echo: None) -> None:
    answer = post(server, "echo")
    assert answer.json()["id"] == answer.headers["x-request-id"]
    until(lambda: answer.headers["x-request-id"] in logged(server, "access.log"))
    until(lambda: "a line of the handler" in logged(server, "workers.log"))
    shown = torchmar("logs", "echo", "--run-folder", server.folder, cwd=server.folder)
    assert "a line of the handler" in shown.stdout


def test_metrics_count_replicas_and_resources_by_node(server: Ray, echo: None) -> None:
    post(server, "echo")

    def lines() -> str:
        return requests.get(f"{server.properties.get('metrics_address')}/metrics", timeout=60).text

    until(lambda: 'torchmar_replica_requests_total{model_name="echo"' in lines() and "} 1.0" in lines())
    assert 'torchmar_node_replicas{model_name="echo",model_version="1.0",node="127.0.0.1' in lines()
    until(lambda: 'resource="gpus",} 1.0' in lines())


def test_requests_need_tokens(server: Ray, echo: None) -> None:
    url = f"{server.server.inference}/predictions/echo"
    assert requests.post(url, b"", timeout=60).status_code == 400
    assert post(server, "echo").status_code == 200


def test_a_model_that_crashes_takes_no_other_along(server: Ray, echo: None) -> None:
    server.management.register("crash-1.0.mar", timeout=120)
    statuses: list[int] = []
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            statuses.append(post(server, "echo").status_code)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        for _ in range(5):
            assert post(server, "crash").status_code in (500, 503)
        count = len(statuses)
        until(lambda: len(statuses) > count + 20)
    finally:
        stop.set()
        thread.join()
    assert set(statuses) == {200}
    server.management.unregister("crash")


def test_a_model_that_does_not_load_any_more_says_why_and_where_and_takes_no_other_along(
    server: Ray, store: Path, echo: None
) -> None:
    server.management.register("fragile-1.0.mar", timeout=120)
    flag = store.parent / "flag"
    flag.touch()
    for worker in described(server, "fragile")["workers"]:
        os.kill(worker["pid"], signal.SIGKILL)
    failing: list[dict[str, Any]] = []

    def fails() -> bool:
        failing[:] = [each for each in described(server, "fragile")["workers"] if "failure" in each]
        return bool(failing)

    until(fails, 120)
    assert failing[0]["failure"].startswith("Traceback") and "the weights have gone" in failing[0]["failure"]
    assert failing[0]["node"].startswith("127.0.0.1 (") and failing[0]["device"] == "cpu"
    assert failing[0]["memoryUsage"] >= 0
    until(lambda: "the weights have gone" in described(server, "fragile").get("failure", ""))
    ping = requests.get(f"{server.server.inference}/ping", timeout=60)
    assert (ping.status_code, ping.json()["status"]) == (500, "Unhealthy")
    answer = post(server, "fragile")
    assert (answer.status_code, "has no worker that loads" in answer.text) == (503, True)
    shown = torchmar("status", "--run-folder", server.folder, cwd=server.folder, code=1)
    assert "crash looping" in shown.stdout and "the weights have gone" in shown.stderr
    assert post(server, "echo").status_code == 200
    flag.unlink()
    until(lambda: post(server, "fragile").ok, 180)
    assert "failure" not in described(server, "fragile")
    server.management.unregister("fragile")


def test_a_request_whose_deadline_cannot_be_met_is_rejected_at_once(server: Ray) -> None:
    server.management.register("sleepy-1.0.mar", timeout=120)
    url = f"{server.server.inference}/predictions/sleepy"

    def send(milliseconds: int = 0) -> requests.Response:
        headers = bearer(server) | ({"x-request-timeout-ms": str(milliseconds)} if milliseconds else {})
        return requests.post(url, b"x", headers=headers, timeout=60)

    assert send(60_000).status_code == 200  # from here on, times are measured
    assert send(60_000).status_code == 200
    with ThreadPoolExecutor(8) as threads:
        others = [threads.submit(send) for _ in range(8)]
        until(lambda: server.management.describe("sleepy")[0].job_queue.pending_requests >= 5)
        late = send(700)
        assert not all(other.done() for other in others)
        assert send(60_000).status_code == 200
        assert {other.result().status_code for other in others} == {200}
    assert (late.status_code, late.json()["type"]) == (503, "ServiceUnavailableException")
    assert "cannot answer before the deadline of the request" in late.json()["message"]
    assert int(late.headers["retry-after"]) >= 1
    server.management.unregister("sleepy")


def test_ray_adds_and_removes_replicas_by_the_requests_that_wait(server: Ray) -> None:
    management = server.management
    management.register("queue-1.0.mar", timeout=120)
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            assert post(server, "queue").status_code == 200

    with ThreadPoolExecutor(12) as threads:
        sending = [threads.submit(send) for _ in range(12)]
        try:
            until(lambda: management.describe("queue")[0].ready == 3, 120)
        finally:
            stop.set()
        for each in sending:
            each.result()
    until(lambda: management.describe("queue")[0].ready == 1, 120)
    management.unregister("queue")


def test_an_archive_at_a_url_is_compared_with_its_digest_before_it_runs(server: Ray, store: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(store))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site.server_port}/echo-1.0.mar"
        try:
            with pytest.raises(ServerError, match="SHA-256"):
                server.management.register(f"{url}#sha256={'0' * 64}", initial_workers=1, timeout=120)
            digest = file_digest.of(store / "echo-1.0.mar", lambda: False)
            server.management.register(f"{url}#sha256={digest}", initial_workers=2, timeout=120)
        finally:
            site.shutdown()
    assert post(server, "echo").status_code == 200
    server.management.unregister("echo")


def test_a_measurement_counts_the_server_ray_and_its_replicas(
    server: Ray, cluster: RayCluster, echo: None, tmp_path: Path
) -> None:
    (worker,) = described(server, "echo")["workers"]
    processes = ClusterGroup(cluster.address).processes()
    of_group = {process.pid for process in processes}
    assert node_addresses(processes) == {"127.0.0.1"}
    assert worker["pid"] in of_group
    assert worker["pid"] not in {process.pid for process in ClusterGroup(cluster.address, "other").processes()}
    body = tmp_path / "body.txt"
    body.write_text("x")
    # The server is found by its address alone, without its run folder.
    where = ("--address", server.server.inference, "--key-file", server.server.key_file)
    report = bench(sys.executable, tmp_path, "echo", *where, "--connections", "4", "--requests", body)
    assert report.target.engine == "ray"
    (step,) = report.steps
    assert step.processes and step.server
    assert step.processes.count > len(of_group)
    assert step.client.other_load_cores is not None
    # One replica has one worker, which takes 20 ms a request: three of four wait for it.
    assert step.server.queue_ms and step.server.total_ms
    assert 20 < step.server.queue_ms < step.server.total_ms


def test_a_cluster_answers_as_one_machine_and_says_where_replicas_run(server: Ray, store: Path, tmp_path: Path) -> None:
    pack(store, "same", ECHO.replace(ANSWER, '"x"'), samples=[{"json": [1], "expect": "x"}])
    path = (store / "same-1.0.mar").rename(tmp_path / "same-1.0.mar")
    described = Case("describe", "GET", "/models/{name}", api="management")
    config = write_config(tmp_path, install_py_dep_per_model="true")
    with Builtin(config, store, tmp_path / "run") as builtin, ThreadPoolExecutor(2) as threads:
        clients = [EngineClient(builtin), EngineClient(server)]
        pair = EnginePair(clients, ("builtin", "ray"), store, threads, print)
        outcome = pair.archive(path, corners=False, more=[described])
    assert outcome.different == []
    assert list(outcome.known) == ["replicas"]


def test_commands_start_servers_of_their_own_beside_others(
    server: Ray, cluster: RayCluster, echo: None, store: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "slept"
    folder.mkdir()
    (folder / "handler.py").write_text(ECHO.replace(ANSWER, '"x"'))
    sample = {"json": [1], "expect": "x"}
    written = {"name": "slept", "version": "1.0", "handler": "handler.py", "samples": [sample]}
    (folder / "archive.yaml").write_text(json.dumps({**written, "config": {"deviceType": "cpu"}}))
    archive.build(folder, tmp_path)
    on_ray = ("--engine", "ray", "--address", cluster.address)
    report = bench(
        cluster.python, tmp_path, *on_ray, "--archive", "slept-1.0.mar", "--rate", "10", **cluster.environment
    )
    assert (report.target.engine, report.requests.compared) == ("ray", 1)
    (step,) = report.steps
    assert step.completed == step.sent > 0
    assert not step.wrong_answers
    assert step.processes

    question = ("--slo", "p99<2s", "--rate", "10", "--cheapest", "--trial", "1s", "--json")
    evidence = json.loads(run(cluster.python, tmp_path, "tune", "slept", *on_ray, *question, **cluster.environment))
    assert evidence["chosen"]["setting"]["workers"] == 1
    assert {each["setting"]["workers"] for each in evidence["predictions"]} >= {1, 2, 4}
    assert "The cluster has room for these replicas: 6 with 1 CPU" in " ".join(evidence["reasons"])

    assert list(server.management.names()) == ["echo"]
    assert post(server, "echo").status_code == 200


def test_commands_of_operation_work_as_with_the_built_in_server(server: Ray, store: Path, tmp_path: Path) -> None:
    where = ("--run-folder", server.folder)
    deployment = tmp_path / "deployment.yaml"
    text = (
        'models: {echo: {default: "V", drain_seconds: 1, versions: {"1.0": {min_workers: 1}, "2.0": {min_workers: 1}}}}'
    )
    deployment.write_text(text.replace("V", "1.0"))
    assert "+ echo 1.0" in torchmar("plan", deployment, *where, cwd=tmp_path, code=2).stdout
    torchmar("apply", deployment, *where, cwd=tmp_path)
    assert "nothing to do" in torchmar("plan", deployment, *where, cwd=tmp_path).stdout
    deployment.write_text(text.replace("V", "2.0"))
    torchmar("apply", deployment, *where, cwd=tmp_path)
    assert server.management.describe("echo")[0].version == "2.0"
    torchmar("rollback", "echo", *where, cwd=tmp_path)
    assert server.management.describe("echo")[0].version == "1.0"
    body = tmp_path / "body.txt"
    body.write_text("x")
    torchmar("promote", "echo", "2.0", *where, "--against-current", "--requests", tmp_path, cwd=tmp_path, code=1)
    (document,) = json.loads(torchmar("status", *where, "--json", cwd=tmp_path).stdout)
    assert document["engine"] == "ray"
    assert all(model["workers"][0]["node"] for model in document["models"])
    shown = torchmar("status", *where, cwd=tmp_path).stdout
    assert "echo" in shown and "on node 127.0.0.1" in shown
    assert "echo" in torchmar("top", *where, "--once", cwd=tmp_path).stdout
    measured = bench(sys.executable, tmp_path, "echo", *where, "--connections", "2", "--requests", body)
    assert measured.target.model_version == "1.0"
    server.management.set_default("echo", "1.0")
    server.management.unregister("echo", "2.0")
    server.management.unregister("echo")
