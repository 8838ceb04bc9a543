"""Ray's own ``serve run`` serves a folder of ``torchmar export ray``, with the answers of the built-in server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.command import torchmar
from tests.support.compared_answers import REQUESTS, assert_equal_answers, build_archives
from tests.support.ray_cluster import RayCluster, ray_cluster
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar.engines.addresses import free_addresses
from torchmar.engines.builtin import Builtin
from torchmar.exporting import ray_config

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory, weights: None) -> list[Path]:
    return build_archives(tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory, archives: list[Path]) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("builtin")
    config = write_config(folder, disable_token_authorization="true")
    with Builtin(config, archives[0].parent, folder / "run") as server:
        for path in archives:
            server.load(path)
        yield server.server.inference


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(4) as running:
        yield running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, archives: list[Path], cluster: RayCluster) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("exported")
    torchmar("export", "ray", *archives, "-o", folder, cwd=folder)
    port = int(free_addresses()["inference_address"].rpartition(":")[2])
    with (folder / "config.yaml").open("a") as stream:
        stream.write(f"http_options: {{host: 127.0.0.1, port: {port}}}\n")
    ray_config.read(folder / "config.yaml")
    command = [cluster.python.with_name("serve"), "run", "--address", cluster.address, "config.yaml"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**cluster.environment, "PYTHONPATH": str(folder)}, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return requests.get(f"{url}/ping", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    try:
        until(answers, 240)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def test_the_keys_that_are_checked_are_those_of_ray(cluster: RayCluster) -> None:
    code = """if True:
        import json
        from ray.serve import config, schema
        names = ("ServeDeploySchema", "ServeApplicationSchema", "DeploymentSchema", "RayActorOptionsSchema",
                 "HTTPOptionsSchema", "gRPCOptionsSchema", "LoggingConfig")
        classes = [*(getattr(schema, name) for name in names), config.AutoscalingConfig]
        print(json.dumps([sorted(getattr(each, "model_fields", None) or each.__fields__) for each in classes]))
    """
    ran = subprocess.run([cluster.python, "-c", code], capture_output=True, text=True, env=cluster.environment)
    ours = (
        *(ray_config.ServeConfig, ray_config.ApplicationSection, ray_config.DeploymentSection),
        *(ray_config.RayActorOptions, ray_config.HttpOptions, ray_config.GrpcOptions),
        *(ray_config.LoggingConfig, ray_config.AutoscalingConfig),
    )
    assert json.loads(ran.stdout) == [sorted(section.model_fields) for section in ours], ran.stderr


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_those_of_the_built_in_server(served: str, builtin: str, name: str) -> None:
    assert_equal_answers(name, builtin, served)


def test_requests_share_batches_and_one_that_fails_takes_no_other_along(served: str) -> None:
    def send(text: str) -> requests.Response:
        headers = {"Content-Type": "text/plain"}
        return requests.post(f"{served}/predictions/rows", text, headers=headers, timeout=60)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(send, ["a", "b", "c", "d", "e", "f", "g", "h"] * 2))
        mixed = list(threads.map(send, ["a", "fail", "b", "c"] * 4))
    assert {answer.status_code for answer in answers} == {200}
    assert max(int(answer.headers["x-batch"]) for answer in answers) > 1
    assert [answer.status_code for answer in mixed] == [200, 503, 200, 200] * 4
    assert [json.loads(answer.text)["row"]["body"] for answer in mixed if answer.ok] == ["a", "b", "c"] * 4
