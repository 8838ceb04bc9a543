"""Imported packages are served by both servers; an imported installation serves the same models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch

from tests.support import mlflow_models, sagemaker_packages
from tests.support.command import torchmar
from tests.support.servers import ENGINES, on_both_engines, write_config
from tests.support.startup import OPEN, SECONDS, address
from torchmar import archive, properties
from torchmar.engines import EngineName
from torchmar.engines.builtin import Builtin
from torchmar.engines.engine import Engine
from torchmar.engines.torchserve import TorchServe
from torchmar.importing import mlflow, sagemaker
from torchmar.importing import torchserve as importing

ROWS = [[1.0, 2.5, -3.0], [4.0, 5.0, 6.0]]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return sagemaker_packages.write(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def store(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    for name in ("plain", "functions"):
        imported = sagemaker.import_package(sagemaker_packages.packed(packages[name]), folder / "archives")
        archive.build(imported.folder, folder / "store")
    model = mlflow_models.save(folder / "model", torch.nn.Linear(3, 2), mlflow_models.COLUMNS)
    archive.build(mlflow.import_model(model, folder / "archives").folder, folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def serving(engine: EngineName, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("serving")
    config = write_config(folder, load_models="all", **OPEN)
    with ENGINES[engine](config, store, folder / "run") as server:
        if isinstance(server, Builtin):
            assert server.wait_until_loaded(SECONDS)
        yield server


@on_both_engines
@pytest.mark.parametrize(
    ("content_type", "body"),
    [("application/json", json.dumps(ROWS)), ("text/csv", "1,2.5,-3\n4,5,6\n")],
)
def test_a_sagemaker_package_is_served(
    serving: Engine, packages: dict[str, Path], content_type: str, body: str
) -> None:
    expected = torch.jit.load(packages["plain"] / "model.pt")(torch.tensor(ROWS)).tolist()
    url = f"{address(serving.folder / 'config.properties')}/predictions"
    headers = {"Content-Type": content_type, "Accept": "text/csv"}
    answer = requests.post(f"{url}/plain", data=body, headers=headers, timeout=SECONDS)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/csv"), answer.text
    assert [float(cell) for cell in answer.text.replace(",", " ").split()] == pytest.approx(
        [cell for row in expected for cell in row]
    )
    refused = requests.post(f"{url}/plain", data=body, headers={"Content-Type": "image/png"}, timeout=SECONDS)
    assert refused.status_code == 415
    assert "Content-Type image/png is not supported" in refused.json()["message"]


@on_both_engines
def test_the_functions_of_a_package_answer(serving: Engine) -> None:
    url = f"{address(serving.folder / 'config.properties')}/predictions/functions"
    answer = requests.post(url, json={"values": ROWS}, timeout=SECONDS)
    assert answer.json()["folder"] == "code"
    failed = requests.post(url, data="x", headers={"Content-Type": "image/png"}, timeout=SECONDS)
    assert (failed.status_code, failed.json()["message"]) == (500, "ValueError: Unsupported content type: image/png")


@on_both_engines
def test_clients_of_mlflows_server_are_answered(serving: Engine, store: Path) -> None:
    model = torch.load(store.parent / "model" / "data" / "model.pth", weights_only=False)
    columns = {"columns": ["c", "b", "a"], "data": [[3.5, 2.5, 1]]}
    url = f"{address(serving.folder / 'config.properties')}/invocations"
    answer = requests.post(url, params={"model_name": "model"}, json={"dataframe_split": columns}, timeout=SECONDS)
    (row,) = answer.json()["predictions"]
    assert [row["0"], row["1"]] == pytest.approx(model(torch.tensor([[1.0, 2.5, 3.5]])).tolist()[0])
    failed = requests.post(url, params={"model_name": "model"}, json={"inputs": {"a": [1]}}, timeout=SECONDS)
    assert (failed.status_code, failed.json()["error_code"]) == (400, "BAD_REQUEST")


@on_both_engines
def test_instances_of_an_envelope_are_answered(engine: EngineName, store: Path, tmp_path: Path) -> None:
    """As Vertex AI's containers of TorchServe are configured."""
    config = write_config(tmp_path, load_models="plain-1.0.mar,model-1.0.mar", service_envelope="json", **OPEN)
    with ENGINES[engine](config, store, tmp_path / "run") as server:
        if isinstance(server, Builtin):
            assert server.wait_until_loaded(SECONDS)
        url = f"{address(server.folder / 'config.properties')}/predictions"
        plain = requests.post(f"{url}/plain", json={"instances": ROWS}, timeout=SECONDS)
        assert [len(row) for row in plain.json()["predictions"]] == [2, 2], plain.text
        rows = [dict(zip("abc", row, strict=True)) for row in ROWS]
        table = requests.post(f"{url}/model", json={"instances": rows}, timeout=SECONDS)
        assert [list(row) for row in table.json()["predictions"]] == [["0", "1"], ["0", "1"]], table.text
        refused = requests.post(f"{url}/model", json={"instances": [{"a": 1}]}, timeout=SECONDS)
        assert refused.status_code == 400


def test_the_snapshot_of_a_real_torchserve_brings_up_the_same_models(store: Path, tmp_path: Path) -> None:
    """What TorchServe writes when it is stopped."""
    config = write_config(tmp_path, load_models="plain-1.0.mar", **OPEN)

    class WithSnapshots(TorchServe):
        def _command(self, config: Path, temporary: Path) -> list[str]:
            return [argument for argument in super()._command(config, temporary) if argument != "-ncs"]

    with WithSnapshots(config, store, tmp_path / "run") as server:
        server.management.register("functions-1.0.mar", initial_workers=2, batch_size=3, response_timeout=44)
        before = {name: server.management.describe(name)[0] for name in server.management.names()}
        snapshots = sorted((tmp_path / "run").rglob("*.cfg"))
    assert snapshots
    place = snapshots[0].parents[2]
    ran = torchmar("import", "--torchserve", place, "--to", tmp_path / "new", cwd=tmp_path)
    assert "what differs:" in ran.stdout
    installation = importing.read(place)
    assert installation.source in (tmp_path / "run").rglob("*.cfg")
    written = tmp_path / "new" / "config.properties"
    values = {**properties.read(written).values, "enable_model_api": "true"}
    written.write_text(properties.show(values))
    with Builtin(written, store, tmp_path / "other") as server:
        assert server.wait_until_loaded(SECONDS)
        for name, version in before.items():
            (after,) = server.management.describe(name)
            for key in ("version", "min_workers", "max_workers", "batch_size", "response_timeout"):
                assert getattr(after, key) == getattr(version, key), (name, key)
        plan = torchmar("plan", tmp_path / "new" / "deployment.yaml", "--run-folder", tmp_path / "other", cwd=tmp_path)
        assert "nothing to do" in plan.stdout, plan.stdout
