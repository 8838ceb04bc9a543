"""The command of an exported Deployment serves with the exported configuration, as a process here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.support.waiting import until
from torchmar import properties
from torchmar.engines.addresses import free_ports
from torchmar.engines.server_records import ServerRecord
from torchmar.exporting.kubernetes import CONFIG, MODEL_STORE, SECRETS, Cluster, objects
from torchmar.exporting.pods import LIVE, READY
from torchmar.properties import Properties

# Loads when the file of the variable GATE is there.
HANDLER = """
import os, pathlib, time

class Handler:
    def initialize(self, context):
        while not pathlib.Path(os.environ["GATE"]).exists():
            time.sleep(0.05)

    def handle(self, rows, context):
        return [{"ok": True} for row in rows]
"""
TOKEN = "a" * 40


def status(url: str) -> int:
    try:
        return requests.get(url, timeout=60).status_code
    except requests.ConnectionError:
        return 0


@pytest.mark.unforked
def test_the_deployments_command_serves_with_its_configuration(tmp_path: Path, make: Callable[..., Path]) -> None:
    store = tmp_path / "store"
    make(HANDLER, store=store, name="echo", config={"minWorkers": 1, "maxWorkers": 1})
    rest, management, metrics, rpc, rpc_management = map(str, free_ports(5))
    config = {
        "inference_address": f"http://127.0.0.1:{rest}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_port": rpc,
        "grpc_management_port": rpc_management,
    }
    made = {each["kind"]: each for each in objects(Cluster(image="torchmar"), Properties(None, config))}
    (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    for key in ("inference_token", "management_token"):
        (tmp_path / key).write_text(TOKEN)
    text = made["ConfigMap"]["data"]["config.properties"]
    file = tmp_path / "config.properties"
    file.write_text(text.replace(MODEL_STORE, str(store)).replace(SECRETS, str(tmp_path)))
    run_folder = tmp_path / "run"
    program, *words = container["command"]
    assert program == "torchmar-serve"
    process = subprocess.Popen(
        [sys.executable, "-m", "torchmar.cli.torchserve_flags", *(word.replace(CONFIG, str(file)) for word in words)],
        cwd=tmp_path,
        env={**os.environ, "TORCHMAR_RUN_FOLDER": str(run_folder), "GATE": str(tmp_path / "gate")},
        stdout=(tmp_path / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        port = next(port["containerPort"] for port in container["ports"] if port["name"] == "http")
        url = f"http://127.0.0.1:{port}"
        assert container["readinessProbe"]["httpGet"]["path"] == READY
        assert container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == LIVE
        # A model that loads keeps the pod from requests, and not from life.
        until(lambda: status(url + LIVE) == 200)
        assert status(url + READY) == 503
        (tmp_path / "gate").touch()
        until(lambda: status(url + READY) == 200)
        assert status(f"http://127.0.0.1:{metrics}/metrics") == 200
        assert requests.post(f"{url}/predictions/echo", data=b"1", timeout=60).status_code == 400
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = requests.post(f"{url}/predictions/echo", data=b"1", headers=headers, timeout=60)
        assert (answer.status_code, answer.json()) == (200, {"ok": True})
        effective = properties.read(run_folder / "config.properties")
        assert effective.get("management_address") == f"http://127.0.0.1:{management}"
    finally:
        process.terminate()
        process.wait(timeout=60)
        if record := ServerRecord.killed(run_folder):
            record.stop()
