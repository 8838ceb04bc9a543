"""A cluster of two nodes with addresses of their own: gRPC, shared models, metrics, state, and fronts that start."""

from __future__ import annotations

import contextlib
import signal
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.support.processes import forked_by
from tests.support.ray_cluster import LOOPBACK, PIDS, RayCluster, pack, ray_cluster, sleeping, start_front
from tests.support.waiting import until
from torchmar import properties
from torchmar.archive import file_digest
from torchmar.cluster.processes import group_name, loader_words
from torchmar.engines.ray import Ray
from torchmar.errors import ConflictError, NotFoundError, ResponseTimeoutError, ServerError
from torchmar.grpc import GrpcInference, GrpcManagement
from torchmar.server.models import state_file

pytestmark = [pytest.mark.oracle, pytest.mark.unforked]
SIZE = 200 << 20
LARGE = f"""
import os, torch

class Handler:
    def initialize(self, context):
        self.weights = torch.rand({SIZE // 4}, generator=torch.Generator().manual_seed(0))

    def handle(self, rows, context):
        return [str(os.getpid()) for row in rows]
"""
CRASH = """
import os

def handle(rows, context):
    os._exit(3)
"""
OPEN = {"disable_token_authorization": "true"}
OTHER = "127.0.0.2"  # the address of the second node


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("nodes") / "store"
    store.mkdir()
    pack(store, "m", "1.0", PIDS)
    pack(store, "slow", "1.0", sleeping(1))
    pack(store, "crash", "1.0", CRASH)
    pack(store, "large", "1.0", LARGE, minWorkers=2, maxWorkers=2)
    pack(store, "spread", "1.0", PIDS, minWorkers=4, maxWorkers=4)
    return store


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LOOPBACK.items():
            patch.setenv(name, value)
        with ray_cluster(3, {"num_cpus": 2, "node_ip_address": OTHER}) as running:
            yield running


@pytest.fixture(scope="module")
def site(store: Path) -> Iterator[str]:
    """The URL of a site with the archives."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(store))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture(scope="module")
def server(cluster: RayCluster, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    with start_front(cluster, tmp_path_factory.mktemp("front"), store, **OPEN) as running:
        yield running


def pid(server: Ray, name: str) -> int:
    response = requests.post(f"{server.server.inference}/predictions/{name}", b"", timeout=60)
    assert response.status_code == 200, response.text
    return int(response.text)


def pids(server: Ray, name: str, count: int) -> set[int]:
    """Return the processes of so many workers, all of which answer."""
    found: set[int] = set()
    deadline = time.monotonic() + 60
    with ThreadPoolExecutor(2 * count) as threads:
        while len(found) < count:
            assert time.monotonic() < deadline, found
            found.update(threads.map(lambda _: pid(server, name), range(4 * count)))
    return found


def workers(server: Ray, name: str) -> list[dict[str, Any]]:
    (document,) = requests.get(f"{server.server.management}/models/{name}", timeout=60).json()
    return list(document["workers"])


def test_models_are_registered_scaled_and_removed_over_grpc(server: Ray, cluster: RayCluster, store: Path) -> None:
    with GrpcManagement(server.server, timeout=120) as management:
        message = management.register("m-1.0.mar", model_name="life", initial_workers=1)
        assert message == 'Model "life" Version: 1.0 registered with 1 initial workers'
        assert management.scale("life", min_worker=2) == "Workers scaled to 2 for model: life"
        (version,) = management.describe("life")
        assert (version.version, version.ready) == ("1.0", 2)
        with pytest.raises(ConflictError, match="already registered"):
            management.register("m-1.0.mar", model_name="life")
        with pytest.raises(ServerError, match="the process ended with exit code 3"):
            management.register("crash-1.0.mar", initial_workers=1)
        with GrpcInference(server.server) as inference:
            assert int(inference.predict("life", b"x")) in {worker["pid"] for worker in workers(server, "life")}
        assert management.unregister("life") == 'Model "life" unregistered'
        with pytest.raises(NotFoundError):
            management.describe("life")


def test_a_deadline_of_grpc_is_kept_and_one_that_cannot_be_met_is_rejected_at_once(server: Ray) -> None:
    server.management.register("slow-1.0.mar", timeout=120)
    with GrpcInference(server.server) as inference, ThreadPoolExecutor(4) as threads:
        (worker,) = workers(server, "slow")
        assert int(inference.predict("slow", b"x", timeout=30)) == worker["pid"]  # from here on, times are measured
        assert int(inference.predict("slow", b"x", timeout=30)) == worker["pid"]
        others = [threads.submit(inference.predict, "slow", b"x") for _ in range(4)]
        until(lambda: server.management.describe("slow")[0].job_queue.pending_requests >= 2)
        with pytest.raises(ServerError, match="cannot answer before the deadline of the request"):
            inference.predict("slow", b"x", timeout=1.5)
        assert {int(other.result()) for other in others} == {worker["pid"]}
        started = time.monotonic()
        with pytest.raises(ResponseTimeoutError):  # nothing waits, so it is run
            inference.predict("slow", b"x", timeout=0.3)
        assert time.monotonic() - started < 5
        assert int(inference.predict("slow", b"x", timeout=30)) == worker["pid"]
    server.management.unregister("slow")


def test_replicas_of_a_node_share_a_model_and_metrics_name_both_nodes(server: Ray) -> None:
    server.management.register("large-1.0.mar", timeout=120)
    found = workers(server, "large")
    assert pids(server, "large", 2) == {worker["pid"] for worker in found}
    if len({worker["node"] for worker in found}) == 1:
        first, second = (worker["pid"] for worker in found)
        assert forked_by(first) == forked_by(second)
        assert all(psutil.Process(each).memory_full_info().pss < 0.8 * SIZE for each in (first, second))
    server.management.unregister("large")

    def registered() -> bool:  # when the replicas that have ended have left their room
        with contextlib.suppress(ServerError):
            server.management.register("spread-1.0.mar", timeout=120)
        return "spread" in server.management.names()

    until(registered, 120)
    found = workers(server, "spread")
    nodes = {worker["node"] for worker in found}
    assert {node.partition(" ")[0] for node in nodes} == {"127.0.0.1", OTHER}
    # Those of a node are forks of one process, and the nodes share none.
    parents = {(worker["node"], forked_by(worker["pid"]).pid) for worker in found}
    assert len(parents) == len({parent for _, parent in parents}) == 2
    pids(server, "spread", 4)

    def counted() -> bool:
        text = requests.get(f"{server.properties.get('metrics_address')}/metrics", timeout=60).text
        lines = [line for line in text.splitlines() if 'model_name="spread"' in line]
        answered = {
            node: sum(
                float(line.rpartition(" ")[2])
                for line in lines
                if line.startswith("torchmar_replica_requests_total") and f'node="{node}"' in line
            )
            for node in nodes
        }
        memory = [line for line in lines if line.startswith("torchmar_replica_memory_bytes")]
        return all(answered.values()) and sum(answered.values()) >= 4 and len(memory) == 4

    until(counted)


def test_a_replica_that_is_killed_takes_no_other_of_its_node_along(server: Ray) -> None:
    found = workers(server, "spread")
    before = {worker["pid"] for worker in found}
    victim = next(
        process
        for process in psutil.process_iter(["cmdline"])
        if "ServeReplica:torchmar:spread" in (process.info["cmdline"] or [""])[0]
    )
    statuses: list[int] = []
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            url = f"{server.server.inference}/predictions/spread"
            statuses.append(requests.post(url, b"", timeout=60).status_code)

    sending = [threading.Thread(target=send) for _ in range(3)]
    for each in sending:
        each.start()
    try:
        with pytest.raises(ServerError, match="exit code 3"):
            server.management.register("crash-1.0.mar", timeout=120)  # a version that crashes in a loop
        victim.kill()
        until(lambda: sum(not psutil.pid_exists(each) for each in before) == 1)
        until(lambda: server.management.describe("spread")[0].ready == 4, 120)
    finally:
        stop.set()
        for each in sending:
            each.join()
    assert set(statuses) == {200}
    assert sum(map(psutil.pid_exists, before)) == 3
    server.management.unregister("spread")
    until(lambda: not loaders())


def loaders(group: str = "") -> list[psutil.Process]:
    (word,) = loader_words("", group_name(group))[1:]
    return [each for each in psutil.process_iter(["cmdline"]) if word in (each.info["cmdline"] or ())]


def test_a_front_whose_leader_ends_before_it_has_published_serves_its_own_models(
    cluster: RayCluster, store: Path, tmp_path: Path
) -> None:
    class Silent(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            time.sleep(60)

    keys = {**OPEN, "torchmar_ray_group": "late", "allowed_urls": "http://127.0.0.1.*"}
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Silent) as silent:
        silent.daemon_threads = True
        threading.Thread(target=silent.serve_forever, daemon=True).start()
        # The first model is deployed, and the second one is still downloaded: nothing is published.
        models = f"m-1.0.mar,http://127.0.0.1:{silent.server_address[1]}/n.mar"
        with start_front(cluster, tmp_path / "first", store, load_models=models, **keys) as first:
            until(lambda: pid_or_zero(first) > 0)
            with start_front(cluster, tmp_path / "second", store, load_models="m-1.0.mar", **keys) as second:
                time.sleep(3)  # it waits for what the first one serves
                assert pid_or_zero(second) == 0
                first._process.send_signal(signal.SIGKILL)
                first._process.wait()
                until(lambda: pid_or_zero(second) > 0, 120)
                assert list(second.management.names()) == ["m"]
                log = (second.folder / "logs" / "server.log").read_text()
                assert "has ended before it had published what it serves" in log
        silent.shutdown()


def pid_or_zero(server: Ray) -> int:
    try:
        response = requests.post(f"{server.server.inference}/predictions/m", b"", timeout=60)
    except (requests.ConnectionError, requests.Timeout):  # it starts, or the request waits for the model
        return 0
    return int(response.text) if response.status_code == 200 else 0


def test_a_model_from_a_url_is_restored_from_the_state_and_nothing_is_left_of_a_node_that_is_killed(
    cluster: RayCluster, store: Path, site: str, tmp_path: Path
) -> None:
    digest = file_digest.of(store / "m-1.0.mar", lambda: False)
    state = tmp_path / "state.json"
    keys = {**OPEN, "torchmar_ray_group": "state", "allowed_urls": "http://127.0.0.1.*"}
    keys["torchmar_state_file"] = str(state)
    with start_front(cluster, tmp_path / "front", store, **keys) as server:
        server.management.register(f"{site}/m-1.0.mar#sha256={digest}", timeout=120)
        server.management.scale("m", min_worker=2, max_worker=2, timeout=120)
        pids(server, "m", 2)
        config = server.properties.file
    until(lambda: not loaders("state"))
    assert config
    saved = state_file.read(state, store.resolve(), properties.read(config))
    assert saved and saved.models == 1
    with start_front(cluster, tmp_path / "front", store, saved.overrides, **keys) as again:
        assert again.wait_until_loaded(120)
        (version,) = again.management.describe("m")
        assert (version.ready, version.url) == (2, f"{site}/m-1.0.mar")
        again.management.scale("m", min_worker=5, max_worker=5, timeout=120)
        before = workers(again, "m")
        gone = [worker["pid"] for worker in before if worker["node"].startswith(f"{OTHER} ")]
        assert (len(gone), len(loaders("state"))) == (2, 2)
        cluster.kill_node(1)
        until(lambda: not any(map(psutil.pid_exists, gone)))
        until(lambda: len(loaders("state")) == 1)
        # The directory runs on the head.
        assert "does not answer" not in (again.folder / "logs" / "server.log").read_text()
        assert pid(again, "m") in {worker["pid"] for worker in before}
    until(lambda: not loaders("state"))
