"""Several fronts of one cluster serve the same, and the replicas outlive each of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import torchmar
from tests.support.certificates import certify
from tests.support.ray_cluster import LOOPBACK, PIDS, RayCluster, pack, ray_cluster, start_front
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar import properties
from torchmar.engines.addresses import free_addresses, free_ports
from torchmar.engines.ray import Ray
from torchmar.errors import ServerError

pytestmark = [pytest.mark.oracle, pytest.mark.unforked]
OPEN = {"disable_token_authorization": "true"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("fronts") / "store"
    store.mkdir()
    for name, version in (("m", "1.0"), ("m", "2.0"), ("other", "1.0")):
        pack(store, name, version, PIDS, batchSize=2)
    return store


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with pytest.MonkeyPatch.context() as patch, ray_cluster(3, 3) as running:
        for name, value in LOOPBACK.items():
            patch.setenv(name, value)
        yield running


def pid(front: Ray, name: str = "m") -> str:
    answer = requests.post(f"{front.server.inference}/predictions/{name}", b"", timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_second_front_serves_the_same_passes_changes_on_and_takes_over(
    cluster: RayCluster, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    anywhere = {"allowed_urls": "file://.*"}
    with start_front(cluster, tmp_path / "first", store, **OPEN) as first:
        first.management.register("m-1.0.mar", timeout=120)
        # It needs no archives of its own.
        with start_front(cluster, tmp_path / "second", tmp_path / "empty", **OPEN, **anywhere) as second:
            worker = pid(first)
            assert pid(second) == worker
            (version,) = second.management.describe("m")
            assert (version.ready, version.batch_size, version.url) == (1, 2, "m-1.0.mar")
            # A change at either is seen at both.
            second.management.register("m-2.0.mar", timeout=120)
            second.management.set_default("m", "2.0")
            assert {each.version for each in second.management.describe("m", "all")} == {"1.0", "2.0"}
            assert pid(first) == pid(second) != worker
            with pytest.raises(ServerError, match="already registered"):
                second.management.register("m-2.0.mar", timeout=120)
            second.management.unregister("m", "1.0")
            assert [each.version for each in first.management.describe("m", "all")] == ["2.0"]
            second.management.scale("m", min_worker=2, max_worker=2, timeout=120)
            until(lambda: first.management.describe("m")[0].ready == second.management.describe("m")[0].ready == 2)
            workers = {pid(second) for _ in range(20)}

            # The leading front is killed under load on the other.
            statuses: list[int] = []
            stop = threading.Event()

            def send() -> None:
                while not stop.is_set():
                    url = f"{second.server.inference}/predictions/m"
                    statuses.append(requests.post(url, b"", timeout=60).status_code)

            thread = threading.Thread(target=send)
            thread.start()
            try:
                first._process.send_signal(signal.SIGKILL)
                until(lambda: "this front leads now" in (second.folder / "logs" / "server.log").read_text(), 30)
                second.management.register((store / "other-1.0.mar").as_uri(), timeout=120)
            finally:
                stop.set()
                thread.join()
            assert set(statuses) == {200}
            assert {pid(second) for _ in range(20)} <= workers  # the same replicas
            # It has the content of what the first one has registered: more replicas can be deployed.
            second.management.scale("m", min_worker=3, max_worker=3, timeout=120)
            pid(second, "other")


def test_a_front_that_is_killed_and_started_again_finds_its_replicas(
    cluster: RayCluster, store: Path, tmp_path: Path
) -> None:
    with start_front(cluster, tmp_path / "front", store, **OPEN) as front:
        front.management.register("m-1.0.mar", timeout=120)
        worker = pid(front)
        time.sleep(2)  # a change of the last moment would be lost
        front._process.send_signal(signal.SIGKILL)
        front._process.wait()
    with start_front(cluster, tmp_path / "front", store, **OPEN) as again:
        assert pid(again) == worker
        assert list(again.management.names()) == ["m"]
        again.management.unregister("m")


def test_a_front_that_has_lost_its_run_folder_finds_the_replicas_of_its_archives(
    cluster: RayCluster, store: Path, tmp_path: Path
) -> None:
    own = tmp_path / "store"
    shutil.copytree(store, own)
    with start_front(cluster, tmp_path / "front", own, **OPEN) as front:
        for name in ("m", "other"):
            front.management.register(f"{name}-1.0.mar", timeout=120)
        workers = {name: pid(front, name) for name in ("m", "other")}
        time.sleep(2)  # a change of the last moment would be lost
        front._process.send_signal(signal.SIGKILL)
        front._process.wait()
    shutil.rmtree(tmp_path / "front")
    pack(own, "other", "1.0", PIDS.replace("0.02", "0.01"), batchSize=2)
    with start_front(cluster, tmp_path / "another", own, **OPEN) as again:
        assert pid(again) == workers["m"]
        # What has changed meanwhile is deployed anew, and nothing that runs is served for it.
        until(lambda: list(again.management.names()) == ["m", "other"], 60)
        until(lambda: again.management.describe("other")[0].ready == 1, 120)
        assert pid(again, "other") != workers["other"]
        assert pid(again) == workers["m"]
        again.management.scale("m", min_worker=2, max_worker=2, timeout=120)
        assert requests.get(f"{again.server.inference}/ping", timeout=60).json()["status"] == "Healthy"


def test_a_front_of_another_release_does_not_take_part(cluster: RayCluster, store: Path, tmp_path: Path) -> None:
    code = f"""if True:
        import torchmar
        torchmar.__version__ = "0.1"
        from torchmar.cluster.session import Session
        Session({cluster.address!r}).join()
    """
    with start_front(cluster, tmp_path / "front", store, **OPEN) as front:
        front.management.register("m-1.0.mar", timeout=120)
        worker = pid(front)
        other = subprocess.run(
            [cluster.python, "-c", code], env=cluster.environment, capture_output=True, text=True, timeout=120
        )
        assert f"the cluster has torchmar {torchmar.__version__}, and this server 0.1" in other.stderr
        assert pid(front) == worker


def test_the_last_front_ends_all_replicas(cluster: RayCluster, store: Path, tmp_path: Path) -> None:
    with start_front(cluster, tmp_path / "front", store, **OPEN) as front:
        front.management.register("m-1.0.mar", timeout=120)
        worker = int(pid(front))
    until(lambda: not Path(f"/proc/{worker}").exists())


def test_a_front_can_have_tls_and_tokens(cluster: RayCluster, store: Path, tmp_path: Path) -> None:
    key, certificate = certify(tmp_path)
    addresses = {name: url.replace("http:", "https:") for name, url in free_addresses().items()}
    keys = {**addresses, "private_key_file": str(key), "certificate_file": str(certificate), "enable_grpc_ssl": "true"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        with start_front(cluster, tmp_path / "front", store, **keys) as front:
            front.management.register("m-1.0.mar", timeout=120)
            url = f"{front.server.inference}/predictions/m"
            assert url.startswith("https:") and front.server.key_file
            assert requests.post(url, b"", timeout=60, verify=str(certificate)).status_code == 400
            token = json.loads(front.server.key_file.read_text())["inference"]["key"]
            headers = {"Authorization": f"Bearer {token}"}
            assert requests.post(url, b"", headers=headers, timeout=60, verify=str(certificate)).status_code == 200


@pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server (apt-get install redis-server)")
def test_models_are_served_while_a_head_with_a_redis_is_restarted(store: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as redis:
        try:
            with pytest.MonkeyPatch.context() as patch, ray_cluster(2, 2, redis=f"127.0.0.1:{port}") as cluster:
                for name, value in LOOPBACK.items():
                    patch.setenv(name, value)
                with start_front(cluster, tmp_path / "front", store, **OPEN) as front:
                    front.management.register("m-1.0.mar", timeout=120)
                    worker = pid(front)
                    statuses: list[int] = []
                    stop = threading.Event()

                    def send() -> None:
                        while not stop.is_set():
                            url = f"{front.server.inference}/predictions/m"
                            statuses.append(requests.post(url, b"", timeout=60).status_code)

                    thread = threading.Thread(target=send)
                    thread.start()
                    try:
                        cluster.restart_head()
                        count = len(statuses)
                        until(lambda: len(statuses) > count + 50)
                        front.management.register("m-2.0.mar", timeout=120)
                    finally:
                        stop.set()
                        thread.join()
                    assert set(statuses) == {200}
                    assert pid(front) == worker
        finally:
            redis.terminate()


def test_ray_serve_runs_a_front_and_starts_it_again(cluster: RayCluster, store: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, load_models="m-1.0.mar", torchmar_health_path="/-/healthz", **OPEN)
    run = tmp_path / "run"
    code = f"""if True:
        import json, ray, sys, time
        from ray import serve
        from torchmar.engines.ray_front import app
        ray.init({cluster.address!r}, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        arguments = {{"config": {str(config)!r}, "model_store": {str(store)!r}, "run_folder": {str(run)!r}}}
        serve.run(app(arguments), name="front", route_prefix=None)
        print("running", flush=True)
        sys.stdin.readline()
        serve.delete("front")
    """
    url = properties.read(config).url("inference_address")
    with subprocess.Popen(
        [cluster.python, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=cluster.environment
    ) as deploying:
        assert deploying.stdin and deploying.stdout
        assert "running" in deploying.stdout.readline()
        try:
            until(lambda: requests.get(f"{url}/-/healthz", timeout=60).status_code == 200, 60)
            assert requests.post(f"{url}/predictions/m", b"", timeout=60).status_code == 200
            first = json.loads((run / "server.json").read_text())["pid"]
            os.kill(first, signal.SIGKILL)

            def answers() -> bool:
                try:
                    return requests.post(f"{url}/predictions/m", b"", timeout=60).status_code == 200
                except requests.ConnectionError:
                    return False

            until(answers, 120)
        finally:
            deploying.stdin.write("\n")
            deploying.stdin.flush()
            deploying.wait(60)
