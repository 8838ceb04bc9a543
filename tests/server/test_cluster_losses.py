"""A cluster loses the directory of its fronts, a node without a substitute, its head; and is restored."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.support.command import torchmar
from tests.support.ray_cluster import LOOPBACK, PIDS, RayCluster, pack, ray_cluster, start_front
from tests.support.waiting import until
from torchmar import properties
from torchmar.engines.ray import Ray
from torchmar.errors import EngineError, ServerError
from torchmar.server.models import state_file

pytestmark = [pytest.mark.oracle, pytest.mark.unforked]
LIMIT_SECONDS = 20  # in place of 60: after which Ray ends without its head


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("losses") / "store"
    store.mkdir()
    for name in ("m", "other"):
        pack(store, name, "1.0", PIDS, batchSize=2)
    return store


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with pytest.MonkeyPatch.context() as patch, ray_cluster(2, 2) as running:
        # Of the fronts; the nodes have Ray's own limit.
        for name, value in {**LOOPBACK, "RAY_gcs_rpc_server_reconnect_timeout_s": str(LIMIT_SECONDS)}.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("front")


@pytest.fixture(scope="module")
def server(cluster: RayCluster, folder: Path, store: Path) -> Iterator[Ray]:
    state = {"torchmar_state_file": str(folder / "state.json")}
    with start_front(cluster, folder / "first", store, disable_token_authorization="true", **state) as running:
        running.management.register("m-1.0.mar", timeout=120)
        yield running


def status(server: Ray, name: str = "m") -> int:
    return requests.post(f"{server.server.inference}/predictions/{name}", b"", timeout=60).status_code


def ping(server: Ray) -> tuple[int, str]:
    response = requests.get(f"{server.server.inference}/ping", timeout=60)
    return response.status_code, response.json()["status"]


def shown(server: Ray) -> str:
    return torchmar("status", "--run-folder", server.folder, cwd=server.folder, code=1).stderr


def test_the_models_of_all_fronts_stay_when_the_directory_ends(
    cluster: RayCluster, server: Ray, store: Path, tmp_path: Path
) -> None:
    with start_front(cluster, tmp_path / "second", store, disable_token_authorization="true") as second:
        statuses: list[int] = []
        stop = threading.Event()

        def send() -> None:
            while not stop.is_set():
                statuses.extend(status(each) for each in (server, second))

        sending = threading.Thread(target=send)
        sending.start()
        try:
            # Several times: whichever front announces itself first to the new one.
            for _ in range(3):
                directories = [
                    process
                    for process in psutil.process_iter(["cmdline", "environ"])
                    if (process.info["cmdline"] or [""])[0].startswith("ray::Directory")
                    and (process.info["environ"] or {}).get("RAY_TMPDIR") == cluster.environment["RAY_TMPDIR"]
                ]
                assert len(directories) == 1
                directories[0].kill()
                time.sleep(8)  # until it has been started again, and fronts have announced themselves
            for each in (server, second):
                assert list(each.management.names()) == ["m"]
            second.management.register("other-1.0.mar", timeout=120)  # passed on
            until(lambda: list(server.management.names()) == ["m", "other"])
            server.management.unregister("other")
            until(lambda: list(second.management.names()) == ["m"])
        finally:
            stop.set()
            sending.join()
        assert set(statuses) == {200}


# A call that waits for the end of the application may never see it: it is deployed again at once.
@pytest.mark.parametrize("ending", ['serve.delete("torchmar:m@1%2E0", _blocking=False)', "serve.shutdown()"])
def test_an_application_that_another_program_deletes_is_deployed_again(
    cluster: RayCluster, server: Ray, ending: str
) -> None:
    code = f"import ray; from ray import serve; ray.init({cluster.address!r}, log_to_driver=False); {ending}"
    statuses: list[int] = []
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            statuses.append(status(server))

    def logged() -> int:
        return (server.folder / "logs" / "server.log").read_text().count("another program has deleted")

    before = logged()
    sending = threading.Thread(target=send)
    sending.start()
    try:
        subprocess.run([cluster.python, "-c", code], env=cluster.environment, timeout=120, check=True)
        until(lambda: logged() > before, 60)
        until(lambda: server.management.describe("m")[0].ready == 1, 120)
        count = len(statuses)
        until(lambda: len(statuses) > count + 10)
    finally:
        stop.set()
        sending.join()
    assert set(statuses) == {200}
    server.management.scale("m", min_worker=2, max_worker=2, timeout=120)
    server.management.scale("m", min_worker=1, max_worker=1, timeout=120)


def test_replicas_that_have_no_room_any_more_are_said_with_numbers(cluster: RayCluster, server: Ray) -> None:
    server.management.scale("m", min_worker=4, max_worker=4, timeout=120)
    assert ping(server) == (200, "Healthy")
    cluster.kill_node(1)
    until(lambda: bool(server.management.describe("m")[0].failure), 90)
    version = server.management.describe("m")[0]
    assert "a replica needs 1 CPUs, and no node has free as much: node 127.0.0.1" in version.failure
    assert version.ready == 2
    assert ping(server) == (200, "Partial Healthy")
    assert status(server) == 200
    assert f"m 1.0: 2 of 4 workers answer: {version.failure}" in " ".join(shown(server).split())
    server.management.scale("m", min_worker=2, max_worker=2, timeout=120)
    assert ping(server) == (200, "Healthy")
    assert not server.management.describe("m")[0].failure


def test_without_its_head_a_front_says_so_and_ends_and_then_restores_its_models(
    cluster: RayCluster, server: Ray, folder: Path, store: Path
) -> None:
    workers = server.management.describe("m")[0].min_workers
    cluster.lose_head()
    until(lambda: ping(server)[1] == "Partial Healthy", 30)
    assert status(server) == 200
    message = f"the head of the cluster at {cluster.address} has not answered"
    with pytest.raises(ServerError, match=message[1:]) as caught:
        server.management.register("other-1.0.mar", timeout=30)
    assert caught.value.status == 503
    assert message in " ".join(shown(server).split())
    with pytest.raises(EngineError, match="ended by itself with exit code 1") as ended:
        server.wait()
    assert "and Ray ends without it" in ended.value.log

    config = server.properties.file
    assert config
    state = state_file.read(folder / "state.json", store.resolve(), properties.read(config))
    assert state and state.models == 1
    with ray_cluster(2) as another:
        keys = {"disable_token_authorization": "true", "torchmar_state_file": str(folder / "state.json")}
        with start_front(another, folder / "first", store, state.overrides, **keys) as again:
            assert again.wait_until_loaded(120)
            assert list(again.management.names()) == ["m"]
            assert again.management.describe("m")[0].ready == workers
            assert status(again) == 200
