"""A server that ends is not ready, and answers new requests until load balancers have seen it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import requests
from grpc_health.v1 import health_pb2

from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar.engines.builtin import Builtin
from torchmar.engines.server_records import ServerRecord

Make = Callable[..., Path]
ANSWER = "def handle(rows, context):\n    return None if rows is None else ['done'] * len(rows)\n"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
OPEN = {"disable_token_authorization": "true"}


class Probes:
    """The health checks of a server, as a kubelet and a load balancer send them."""

    def __init__(self, server: Builtin) -> None:
        self._server = server

    def __call__(self) -> dict[str, object]:
        base = self._server.server.inference
        paths = ("/ping", "/v2/health/ready", "/v2/health/live")
        statuses = {path: requests.get(f"{base}{path}").status_code for path in paths}
        with grpc.insecure_channel(self._server.server.grpc_inference.removeprefix("grpc://")) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                health_pb2.HealthCheckRequest.SerializeToString,
                health_pb2.HealthCheckResponse.FromString,
            )
            return {**statuses, "grpc": check(health_pb2.HealthCheckRequest(), timeout=30).status}


READY = {"/ping": 200, "/v2/health/ready": 200, "/v2/health/live": 200, "grpc": SERVING}
NOT_READY = {"/ping": 500, "/v2/health/ready": 503, "/v2/health/live": 200, "grpc": NOT_SERVING}


def test_after_sigterm_it_is_not_ready_and_answers_new_requests_for_the_configured_delay(
    tmp_path: Path, make: Make
) -> None:
    path = make(ANSWER)
    # The delay ends by a second signal, long before it would.
    config = write_config(tmp_path, torchmar_shutdown_delay="600", **OPEN)
    with Builtin(config, path.parent, tmp_path / "run") as server:
        server.load(path)
        probes = Probes(server)
        assert probes() == READY
        record = ServerRecord.find(server.folder)
        assert record
        os.kill(record.pid, signal.SIGTERM)
        until(lambda: probes() == NOT_READY)
        for _ in range(3):  # on new connections
            answer = requests.post(f"{server.server.inference}/predictions/made", data=b"x")
            assert (answer.status_code, answer.text) == (200, "done")
        os.kill(record.pid, signal.SIGTERM)
        until(lambda: not record.alive)
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{server.server.inference}/ping")
    log = (server.folder / "logs" / "server.log").read_text()
    assert "not ready any more; new requests are answered for 600 s" in log


def test_it_is_live_and_not_ready_until_the_workers_of_every_model_of_its_configuration_are(
    tmp_path: Path, make: Make
) -> None:
    gate = tmp_path / "gate"
    slow = f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.02)\n{ANSWER}"
    fast, late = make(ANSWER, name="fast"), make(slow, name="late")
    config = write_config(tmp_path, load_models="all", default_workers_per_model="1", **OPEN)
    with Builtin(config, fast.parent, tmp_path / "run") as server:
        probes = Probes(server)
        predict = f"{server.server.inference}/predictions/fast"
        until(lambda: requests.post(predict, data=b"x").status_code == 200)
        assert probes() == NOT_READY
        gate.touch()
        until(lambda: probes() == READY)
        assert late.exists()


def test_replicas_with_one_token_file_answer_the_same_clients(tmp_path: Path, make: Make) -> None:
    path = make(ANSWER)
    secrets = tmp_path / "secrets"  # as a mounted Secret of Kubernetes
    secrets.mkdir()
    for name in ("inference", "management"):
        (secrets / name).write_text(f"{name}-token-of-all-replicas\n")
    keys = {f"torchmar_{name}_token_file": str(secrets / name) for name in ("inference", "management")}
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with (
        Builtin(write_config(folders[0], **keys), path.parent, folders[0] / "run") as one,
        Builtin(write_config(folders[1], **keys), path.parent, folders[1] / "run") as two,
    ):
        for server in (one, two):
            management = {"Authorization": "Bearer management-token-of-all-replicas"}
            url = f"{server.server.management}/models?url={path.name}&initial_workers=1"
            assert requests.post(url, headers=management).status_code == 200
        for server in (one, two, one, two):
            inference = {"Authorization": "Bearer inference-token-of-all-replicas"}
            answer = requests.post(f"{server.server.inference}/predictions/made", data=b"x", headers=inference)
            assert (answer.status_code, answer.text) == (200, "done")
            wrong = {"Authorization": "Bearer management-token-of-all-replicas"}
            assert requests.post(f"{server.server.inference}/predictions/made", headers=wrong).status_code == 400
