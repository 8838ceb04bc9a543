"""torchmar.server.models.snapshots writes TorchServe's snapshots; each server starts from those of the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import requests

from tests.support.servers import ENGINES, on_both_engines, write_config
from tests.support.startup import OK, OPEN, SECONDS, address, post
from torchmar import properties
from torchmar.engines import EngineName
from torchmar.engines.builtin import Builtin
from torchmar.server.models import snapshots

Make = Callable[..., Path]
# As KServe's configuration of TorchServe lists models.
LISTED = {
    "name": "startup.cfg",
    "modelCount": 1,
    "models": {
        "echo": {
            "1.0": {
                "defaultVersion": True,
                "marName": "echo-1.0.mar",
                "minWorkers": 1,
                "maxWorkers": 5,
                "batchSize": 3,
                "maxBatchDelay": 10,
                "responseTimeout": 77,
            }
        }
    },
}


def describe(config: Path, name: str) -> list[dict[str, object]]:
    answer = requests.get(f"{address(config, 'management')}/models/{name}/all", timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    kept = ("modelVersion", "minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout")
    return sorted(({key: one[key] for key in kept} for one in answer.json()), key=lambda one: str(one["modelVersion"]))


@on_both_engines
def test_a_snapshot_in_the_configuration_lists_the_models_to_load(
    engine: EngineName, tmp_path: Path, make: Make
) -> None:
    # The archive's own configuration and load_models have a lower priority.
    archive = make(OK, name="echo", config={"minWorkers": 2, "maxWorkers": 2, "batchSize": 9, "responseTimeout": 99})
    make(OK, name="other")
    config = write_config(tmp_path, model_snapshot=json.dumps(LISTED), load_models="other-1.0.mar", **OPEN)
    with ENGINES[engine](config, archive.parent, tmp_path / "run") as server:
        assert post(f"{address(config)}/predictions/echo").text == "ok"
        assert list(server.management.names()) == ["echo"]
        assert describe(config, "echo") == [
            {
                "modelVersion": "1.0",
                "minWorkers": 1,
                "maxWorkers": 5,
                "batchSize": 3,
                "maxBatchDelay": 10,
                "responseTimeout": 77,
            }
        ]


@on_both_engines
def test_either_server_starts_from_a_snapshot_of_this_one(engine: EngineName, tmp_path: Path, make: Make) -> None:
    store = make(OK, name="echo").parent
    make(OK, name="echo", version="2.0")
    written = tmp_path / "logs" / "config"
    first = write_config(tmp_path, torchmar_snapshots=str(written), load_models="echo-1.0.mar", **OPEN)
    with Builtin(first, store, tmp_path / "run") as server:
        assert server.wait_until_loaded(SECONDS)
        management = server.management
        assert [path.name.partition("-")[2] for path in written.iterdir()] == ["startup.cfg"]
        management.register("echo-2.0.mar", initial_workers=1, batch_size=4, max_batch_delay=20, response_timeout=50)
        management.set_default("echo", "2.0")
        management.scale("echo", "1.0", min_worker=2)
        management.register("echo-1.0.mar", model_name="spare")
        management.unregister("spare")
        described, default = describe(first, "echo"), management.describe("echo")[0].version
    names = [path.name.partition("-")[2] for path in sorted(written.iterdir())]
    assert names == ["startup.cfg", *["snapshot.cfg"] * 5, "shutdown.cfg"]
    last = snapshots.latest(written)
    assert last
    values = dict(properties.read(last).values)
    assert json.loads(values["model_snapshot"])["modelCount"] == 2
    assert not [key for key in values if key.startswith("torchmar_")]
    with ENGINES[engine](last, store, tmp_path / "again") as server:
        while server.management.describe("echo")[0].ready < 1:
            assert server.failures() == {}
        assert describe(first, "echo") == described  # whose addresses are in the snapshot, too
        assert server.management.describe("echo")[0].version == default == "2.0"
        assert post(f"{address(first)}/predictions/echo").text == "ok"


def test_models_that_could_not_be_loaded_stay_in_the_snapshot(tmp_path: Path, make: Make) -> None:
    store = make(OK, name="echo").parent
    gone = {**LISTED["models"]["echo"]["1.0"], "marName": "gone.mar"}  # type: ignore[index]
    listed = {**LISTED, "models": {**LISTED["models"], "gone": {"3.0": gone}}}  # type: ignore[dict-item]
    written = tmp_path / "snapshots"
    config = write_config(tmp_path, torchmar_snapshots=str(written), model_snapshot=json.dumps(listed), **OPEN)
    with Builtin(config, store, tmp_path / "run") as server:
        report = server.wait_until_loaded(SECONDS)
        assert report
        assert [failure.url for failure in report.failures] == ["gone.mar"]
        assert post(f"{address(config)}/predictions/echo").text == "ok"
    last = snapshots.latest(written)
    assert last
    models = json.loads(properties.read(last).values["model_snapshot"])["models"]
    assert models["gone"]["3.0"] == {**gone, "defaultVersion": True}
    assert set(models) == {"echo", "gone"}
