"""``torchmar serve`` restores the models of the last run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import torchmar
from tests.support.servers import write_config
from torchmar.connection import Endpoint
from torchmar.engines.server_records import ServerRecord
from torchmar.errors import TorchmarError
from torchmar.management import ManagementClient
from torchmar.properties import Properties
from torchmar.server.models import state_file


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write_config(tmp_path)
    yield tmp_path
    torchmar("stop", cwd=tmp_path)


def serve(folder: Path, *options: str) -> str:
    """Start a server in the background; return what is printed."""
    ran = torchmar("serve", "--detach", "--model-store", "store", *options, cwd=folder)
    return ran.stdout + ran.stderr


def kill(folder: Path) -> None:
    record = ServerRecord.find(folder / ".torchmar")
    assert record
    os.kill(record.pid, signal.SIGKILL)


def models(folder: Path) -> dict[tuple[str, str], Any]:
    client = ManagementClient(Endpoint.from_run_folder(folder / ".torchmar"))
    return {(each.name, each.version): each for name in client.names() for each in client.describe(name, "all")}


def test_a_killed_server_comes_back_with_its_models_versions_defaults_and_workers(
    folder: Path, make: Callable[..., Path]
) -> None:
    config: dict[str, Any] = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 4, "maxBatchDelay": 1}
    for version in ("1.0", "2.0"):
        make(version=version, config=config)
    make(name="other", config=config)
    make(name="removed", config=config)
    serve(folder)
    torchmar("set-default", "made", "1.0", cwd=folder)
    torchmar("scale", "other", "2", cwd=folder)
    torchmar("unregister", "removed", cwd=folder)
    torchmar("unregister", "made", "--version", "2.0", cwd=folder)
    kill(folder)

    make(name="new", config=config)
    printed = serve(folder)
    assert "these are the models of the last run (.torchmar/state.json); --fresh starts without them" in printed
    running = models(folder)
    assert running.keys() == {("made", "1.0"), ("other", "1.0"), ("new", "1.0")}
    assert (running["other", "1.0"].min_workers, running["other", "1.0"].batch_size) == (2, 4)

    torchmar("stop", cwd=folder)
    make(name="other", config={**config, "batchSize": 8})  # the same file with another content
    (folder / "store" / "made-1.0.mar").unlink()
    printed = serve(folder)
    assert f"made 1.0 is not restored: made-1.0.mar is no longer in {folder / 'store'}" in " ".join(printed.split())
    assert "other 1.0: other-1.0.mar has changed; the options in it are used" in " ".join(printed.split())
    running = models(folder)
    assert running.keys() == {("other", "1.0"), ("new", "1.0")}
    assert (running["other", "1.0"].min_workers, running["other", "1.0"].batch_size) == (1, 8)

    torchmar("stop", cwd=folder)
    printed = serve(folder, "--fresh")
    assert "last run" not in printed
    assert models(folder).keys() == {("other", "1.0"), ("new", "1.0"), ("made", "2.0"), ("removed", "1.0")}


NONE = Properties(None, {})


def test_the_state_of_another_store_or_configuration_is_not_used(tmp_path: Path) -> None:
    file, store = tmp_path / "state.json", tmp_path
    (store / "a.mar").write_bytes(b"")
    entry = {
        "defaultVersion": True,
        "marName": "a.mar",
        "minWorkers": 3,
        "file": [0, (store / "a.mar").stat().st_mtime_ns],
    }
    saved = {
        "schema": "torchmar-state/1",
        "model_store": str(store),
        "load_models": "",
        "torchmar_routes": "",
        "archives": ["a.mar"],
        "models": {"a": {"1.0": entry}},
        "routes": {"/predict": {"model": "a"}},
    }
    assert state_file.read(file, store, NONE) is None
    file.write_text(json.dumps(saved))
    state = state_file.read(file, store, NONE)
    assert state and state.models == 1 and not state.notes
    assert json.loads(state.overrides["model_snapshot"])["models"]["a"]["1.0"]["minWorkers"] == 3
    assert json.loads(state.overrides["torchmar_routes"]) == {"/predict": {"model": "a"}}
    assert state_file.read(file, tmp_path / "elsewhere", NONE) is None
    assert state_file.read(file, store, Properties(None, {"load_models": "all"})) is None
    file.write_text(json.dumps({**saved, "routes": {"x": 1}}))
    with pytest.raises(TorchmarError, match=r"state\.json: .* it is damaged \('x' is not a path"):
        state_file.read(file, store, NONE)
    changed = state_file.read(file, store, Properties(None, {"torchmar_routes": '{"/x": "a"}'}))
    assert changed and "torchmar_routes" not in changed.overrides


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"schema": "other"}', '{"schema": "torchmar-state/1"}']
)
def test_a_damaged_state_file_is_an_error_that_says_how_to_start_without_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    reason = "of another version of torchmar" if "other" in text else "damaged"
    with pytest.raises(
        TorchmarError, match=rf"state\.json: the models of the last run cannot be read: it is {reason}"
    ) as caught:
        state_file.read(tmp_path / "state.json", tmp_path, NONE)
    assert caught.value.hint == "--fresh starts without them"
