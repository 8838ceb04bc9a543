"""The engine ray: the built-in server's APIs over replicas on a cluster of several nodes, with the same answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.compared_answers import REQUESTS, assert_equal_answers, build_archives
from tests.support.ray_cluster import LOOPBACK, RayCluster, pack, ray_cluster, sleeping
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar.engines.builtin import Builtin
from torchmar.engines.ray import Ray
from torchmar.errors import ServerError

pytestmark = [pytest.mark.oracle, pytest.mark.unforked]
SLOW = sleeping(0.05)
STREAM = """
def handle(rows, context):
    return None if rows is None else parts(rows)

def parts(rows):
    for part in range(3):
        yield [f"part {part} " for row in rows]
"""
BROKEN = """
def handle(rows, context):
    raise RuntimeError("this model has no weights")
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    store = build_archives(folder)[0].parent
    pack(store, "slow", "1.0", SLOW)
    pack(store, "slow", "2.0", SLOW)
    pack(store, "stream", "1.0", STREAM)
    pack(store, "broken", "1.0", BROKEN)
    pack(store, "crowd", "1.0", SLOW, minWorkers=64, maxWorkers=64)
    pack(store, "four", "1.0", SLOW, minWorkers=4, maxWorkers=4)
    return store


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(3, 3, 2) as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store: Path, cluster: RayCluster) -> Iterator[Ray]:
    folder = tmp_path_factory.mktemp("ray")
    config = write_config(folder, disable_token_authorization="true", torchmar_ray_address=cluster.address)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LOOPBACK.items():
            patch.setenv(name, value)
        with Ray(config, store, folder / "run", python=str(cluster.python)) as running:
            yield running


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("builtin")
    with Builtin(write_config(folder, disable_token_authorization="true"), store, folder / "run") as running:
        for name in ("rows-2.0.mar", "digits-1.0.mar", "stream-1.0.mar"):
            running.load(store / name)
        yield running.server.inference


@pytest.fixture(scope="module")
def served(server: Ray, store: Path) -> Iterator[str]:
    for name in ("rows-2.0.mar", "digits-1.0.mar", "stream-1.0.mar"):
        server.load(store / name)
    yield server.server.inference
    for model in ("rows", "digits", "stream"):
        server.management.unregister(model)


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_those_of_the_built_in_server(served: str, builtin: str, name: str) -> None:
    assert_equal_answers(name, builtin, served)


def test_a_stream_arrives_in_parts(served: str, builtin: str) -> None:
    for url in (builtin, served):
        answer = requests.post(f"{url}/predictions/stream", b"", timeout=60)
        assert (answer.status_code, answer.text) == (200, "part 0 part 1 part 2 ")
        assert answer.headers["transfer-encoding"] == "chunked"


def test_requests_share_batches_and_metrics_count_them(served: str, server: Ray) -> None:
    def send(text: str) -> requests.Response:
        return requests.post(f"{served}/predictions/rows", text, headers={"Content-Type": "text/plain"}, timeout=60)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(send, ["a", "b", "fail", "d"] * 8))
        good = list(threads.map(send, ["a"] * 32))  # a batch with "fail" is repeated request by request
    assert [answer.status_code for answer in answers] == [200, 200, 503, 200] * 8
    assert max(int(answer.headers["x-batch"]) for answer in good) > 1
    metrics = requests.get(f"{server.properties.get('metrics_address')}/metrics", timeout=60).text
    assert 'torchmar_batch_size_sum{model_name="rows"' in metrics


def test_replicas_are_scaled_over_nodes_and_versions_switched_without_a_lost_request(server: Ray, store: Path) -> None:
    url, management = server.server.inference, server.management
    management.register("slow-1.0.mar", initial_workers=1, timeout=120)
    statuses: list[int] = []
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            statuses.append(requests.post(f"{url}/predictions/slow", b"", timeout=60).status_code)

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        management.scale("slow", min_worker=3, max_worker=3, timeout=120)
        (version,) = management.describe("slow")
        assert version.ready == 3
        document = requests.get(f"{server.server.management}/models/slow", timeout=60).json()
        workers = document[0]["workers"]
        assert len({worker["node"] for worker in workers}) > 1
        assert all(worker["memoryUsage"] > 0 and worker["pid"] > 0 for worker in workers)
        management.scale("slow", min_worker=1, max_worker=1, timeout=120)
        assert management.describe("slow")[0].ready == 1
        management.register("slow-2.0.mar", initial_workers=1, timeout=120)
        management.set_default("slow", "2.0")
        management.unregister("slow", "1.0")
        count = len(statuses)
        until(lambda: len(statuses) > count + 20)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert [version.version for version in management.describe("slow", "all")] == ["2.0"]
    management.unregister("slow")


def test_a_model_that_does_not_load_shows_its_traceback_and_is_not_registered(server: Ray) -> None:
    with pytest.raises(ServerError, match="this model has no weights"):
        server.management.register("broken-1.0.mar", initial_workers=1, timeout=120)
    assert "broken" not in server.management.names()


def test_replicas_without_room_are_an_error_with_numbers(server: Ray) -> None:
    with pytest.raises(ServerError, match=r"64 replicas need 1 CPUs each, and there is room for 8"):
        server.management.register("crowd-1.0.mar", timeout=120)
    assert "crowd" not in server.management.names()


def test_requests_of_a_node_that_is_killed_are_run_on_another(server: Ray, cluster: RayCluster) -> None:
    url, management = server.server.inference, server.management
    management.register("four-1.0.mar", timeout=120)
    with ThreadPoolExecutor(8) as threads:
        sending = [threads.submit(requests.post, f"{url}/predictions/four", b"", timeout=120) for _ in range(200)]
        time.sleep(1)
        cluster.kill_node(1)
        answers = [request.result() for request in sending]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) > 1  # of different replicas
    management.unregister("four")
