"""torchmar.importing.torchserve reads an installation as TorchServe would, and writes a deployment and its config."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from torchmar import properties
from torchmar.deployment import desired
from torchmar.errors import TorchmarError
from torchmar.importing import torchserve

Make = Callable[..., Path]
STATE = {"minWorkers": 2, "maxWorkers": 3, "batchSize": 4, "maxBatchDelay": 50, "responseTimeout": 60}


def install(folder: Path, **values: str) -> Path:
    """Write the ``config.properties`` of an installation whose store is ``store``."""
    folder.mkdir(exist_ok=True)
    file = folder / "config.properties"
    file.write_text(properties.show({"model_store": "store", **values}))
    return file


def snapshot(folder: Path, name: str, models: dict[str, Any], **values: str) -> Path:
    """Write a snapshot to the place where TorchServe has it."""
    file = folder / "logs" / "config" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"name": name, "modelCount": len(models), "created": 1, "models": models})
    file.write_text(properties.show({"model_store": str(folder / "store"), "model_snapshot": text, **values}))
    return file


def imported(path: Path, to: Path, **keys: Any) -> tuple[torchserve.Imported, desired.Deployment, dict[str, str]]:
    result = torchserve.import_installation(torchserve.read(path, **keys), to)
    return result, desired.read(result.deployment), dict(properties.read(result.config).values)


def test_models_of_load_models_get_the_workers_that_torchserve_starts(tmp_path: Path, make: Make) -> None:
    make(name="echo", store=tmp_path / "ts" / "store")
    make(name="echo", version="2.0", store=tmp_path / "ts" / "store")
    make(name="set", store=tmp_path / "ts" / "store", config={"minWorkers": 2, "maxWorkers": 4, "batchSize": 8})
    file = install(
        tmp_path / "ts",
        load_models="echo-2.0.mar,echo-1.0.mar,set-1.0.mar",
        models=json.dumps({"echo": {"2.0": {"minWorkers": 3, "maxWorkers": 3, "batchSize": 2}}}),
        default_workers_per_model="1",
        vmargs="-Xmx4g",
        certificate_file="cert.pem",
        misspelt_key="1",
    )
    result, deployment, config = imported(file, tmp_path / "new")
    echo, of_set = deployment.models["echo"], deployment.models["set"]
    assert (echo.default, of_set.default) == ("2.0", "1.0")
    assert (echo.version("2.0").min_workers, echo.version("2.0").batch_size) == (3, 2)
    assert echo.version("1.0").min_workers == 1
    assert (of_set.version("1.0").min_workers, of_set.version("1.0").max_workers) == (2, 4)
    assert config["load_models"] == "echo-2.0.mar,echo-1.0.mar,set-1.0.mar"
    assert json.loads(config["models"])["echo"]["2.0"]["batchSize"] == 2
    assert config["model_store"] == str(tmp_path / "ts" / "store")
    assert config["certificate_file"] == str(tmp_path / "ts" / "cert.pem")
    assert "vmargs" not in config
    reported = {difference.place: difference for difference in result.differences}
    assert "left out: for Java" in reported["vmargs"].what
    assert "neither server has such a key" in reported["misspelt_key"].what
    assert reported["allowed_urls"].id == "allowed-urls"


def test_workers_follow_the_machine_only_for_archives_that_set_no_number(tmp_path: Path, make: Make) -> None:
    make(name="set", store=tmp_path / "ts" / "store", config={"minWorkers": 2, "maxWorkers": 4})
    file = install(tmp_path / "ts", load_models="all")

    def places(to: str) -> set[str]:
        return {difference.place for difference in imported(file, tmp_path / to)[0].differences}

    assert "default_workers_per_model" not in places("first")
    make(name="echo", store=tmp_path / "ts" / "store")
    assert "default_workers_per_model" in places("second")


def test_the_last_snapshot_precedes_the_configuration(tmp_path: Path, make: Make) -> None:
    store = tmp_path / "ts" / "store"
    make(name="echo", store=store)
    make(name="other", store=store)
    entry = {"defaultVersion": True, "marName": "echo-1.0.mar", **STATE}
    snapshot(tmp_path / "ts", "1-startup.cfg", {"other": {"1.0": {**entry, "marName": "other-1.0.mar"}}})
    last = snapshot(tmp_path / "ts", "2-shutdown.cfg", {"echo": {"1.0": entry}}, job_queue_size="7")
    os.utime(last, (2e9, 2e9))
    file = install(tmp_path / "ts", load_models="other-1.0.mar")
    for path in (file, tmp_path / "ts", last):
        result, deployment, config = imported(path, tmp_path / f"new-{path.suffix}")
        assert result.installation.source == last
        assert list(deployment.models) == ["echo"]
        state = deployment.models["echo"].version("1.0")
        assert (state.min_workers, state.max_workers, state.batch_size, state.response_timeout) == (2, 3, 4, 60)
        assert config["job_queue_size"] == "7"
    _, deployment, _ = imported(file, tmp_path / "ncs", use_snapshots=False)
    assert list(deployment.models) == ["other"]


def test_what_the_built_in_server_refuses_is_reported(tmp_path: Path, make: Make) -> None:
    store = tmp_path / "ts" / "store"
    make(name="sequences", store=store, config={"sequenceBatching": True})
    make(
        "import missing.part\n",
        name="broken",
        store=store,
        disk={"missing.py": "x = 1"},
        files={"missing.py": "missing.py"},
    )
    (store / "flow.war").write_bytes(b"")
    file = install(tmp_path / "ts", load_models="all", default_workers_per_model="1")
    result, _, _ = imported(file, tmp_path / "new")
    blocking = {difference.place: difference for difference in result.differences if difference.blocks}
    assert blocking["sequences 1.0"].id == "config-modes"
    assert blocking["broken 1.0"].what.startswith("MAR3")
    assert "flow.war" in blocking["workflow_store"].what


def test_a_whole_installation_is_left_as_it_was(tmp_path: Path, make: Make) -> None:
    made = make(name="echo", store=tmp_path / "ts" / "store")
    file = install(tmp_path / "ts", load_models="all")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (made, file)}
    imported(file, tmp_path / "new")
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before}
    assert sorted(path.name for path in (tmp_path / "ts").rglob("*")) == ["config.properties", "echo-1.0.mar", "store"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_store": ""}, "names no model_store"),
        ({"model_store": "elsewhere"}, "the model store elsewhere is neither in .*ts nor in the current folder"),
        ({"load_models": "a.mar,b.mar"}, r"a\.mar \(there is no such file\), b\.mar \(there is no such file\)"),
        ({"load_models": "https://u:secret@h/a.mar?s=secret"}, r"https://\.\.\.@h/a\.mar\?\.\.\. \(there is no"),
        ({"load_models": "bad.mar"}, r"bad\.mar \(.*bad\.mar is no archive that can be read\)"),
        ({"model_snapshot": "{"}, "config.properties: not JSON"),
        ({"load_models": "echo-1.0.mar", "models": "[]"}, "models: not an object of models"),
    ],
)
def test_what_cannot_be_imported_is_refused_and_nothing_is_written(
    tmp_path: Path, make: Make, values: dict[str, str], message: str
) -> None:
    store = make(name="echo", store=tmp_path / "ts" / "store").parent
    (store / "bad.mar").write_bytes(b"PK")
    file = install(tmp_path / "ts", **values)
    with pytest.raises(TorchmarError, match=message):
        imported(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_in_javas_encoding_is_read_and_values_that_no_server_takes_are_reported(
    tmp_path: Path, make: Make
) -> None:
    make(name="echo", store=tmp_path / "ts" / "store")
    file = install(tmp_path / "ts", load_models="all", job_queue_size="many", number_of_gpu="$$GPUS$$")
    file.write_bytes("\ufeff# f\u00fcr Modelle\n".encode("latin-1", "ignore") + file.read_bytes())
    result, deployment, _ = imported(file, tmp_path / "new")
    assert list(deployment.models) == ["echo"]
    (rejected,) = (difference for difference in result.differences if difference.blocks)
    assert "job_queue_size=many: not a whole number" in rejected.what
    file.write_text(file.read_text("latin-1"), encoding="utf-16")
    with pytest.raises(TorchmarError, match=r"config\.properties is no text in UTF-8"):
        imported(file, tmp_path / "other")
    install(tmp_path / "ts", load_models=f"{'a' * 300}.mar")
    with pytest.raises(TorchmarError, match="there is no such file"):
        imported(file, tmp_path / "other")


def test_existing_files_and_missing_ones_are_named(tmp_path: Path, make: Make) -> None:
    make(name="echo", store=tmp_path / "ts" / "store")
    file = install(tmp_path / "ts", load_models="all")
    with pytest.raises(TorchmarError, match=r"config.properties exists already"):
        imported(file, tmp_path / "ts")
    with pytest.raises(TorchmarError, match="nothing does not exist"):
        imported(tmp_path / "nothing", tmp_path / "new")
    with pytest.raises(TorchmarError, match=r"neither config.properties nor logs/config/\*.cfg"):
        imported(tmp_path / "ts" / "store", tmp_path / "new")


def test_a_snapshot_of_another_version_than_its_archives_is_reported(tmp_path: Path, make: Make) -> None:
    make(name="echo", store=tmp_path / "ts" / "store")
    file = snapshot(tmp_path / "ts", "1-shutdown.cfg", {"echo": {"2.0": {"marName": "echo-1.0.mar", **STATE}}})
    result, _, _ = imported(file, tmp_path / "new")
    (blocking,) = (difference.what for difference in result.differences if difference.blocks)
    assert blocking == "the snapshot has the version 2.0, and echo-1.0.mar is 1.0"


def test_a_version_with_no_workers_has_none_in_both_files(tmp_path: Path, make: Make) -> None:
    store = tmp_path / "ts" / "store"
    make(name="echo", store=store)
    parked = {"defaultVersion": True, "marName": "echo-1.0.mar", **STATE, "minWorkers": 0, "maxWorkers": 0}
    file = snapshot(tmp_path / "ts", "1-shutdown.cfg", {"echo": {"1.0": parked}})
    _, deployment, config = imported(file, tmp_path / "new")
    assert deployment.models["echo"].parked
    written = json.loads(config["model_snapshot"])["models"]["echo"]["1.0"]
    assert (written["minWorkers"], written["batchSize"]) == (0, 4)
    assert yaml.safe_load((tmp_path / "new" / "deployment.yaml").read_text())["server"]["config"] == "config.properties"
