"""New versions are served when their archives appear, and old ones drained: model stores and base paths that change."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.packing import pack_handler
from tests.support.tensorflow_models import FOLDER
from torchmar import archive
from torchmar.engines.addresses import free_addresses
from torchmar.engines.builtin import Builtin

HANDLER = """
import time
def handle(rows, context):
    if rows is None:
        return None
    time.sleep(SECONDS)
    return [{"version": "VERSION"} for _ in rows]
"""
PATIENCE = 90  # seconds that a test waits for the server on a busy machine


def pack(folder: Path, target: Path, version: str, *, name: str = "m", seconds: float = 0, text: str = HANDLER) -> Path:
    """Write an archive whose answers name its version; its name is that of the target, written at once."""
    code = text.replace("SECONDS", str(seconds)).replace("VERSION", version)
    packed = pack_handler(
        folder / "packed", code, name=name, version=version, config={"minWorkers": 1, "maxWorkers": 1}
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    return packed.rename(target)


def config(folder: Path, **keys: Any) -> Path:
    values = {**free_addresses(), **keys}
    lines = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    file = folder / "config.properties"
    file.write_text("\n".join(["disable_token_authorization=true", "enable_model_api=true", *lines]) + "\n")
    return file


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Builtin]]:
    """Return a function that starts a server with keys of the configuration."""
    running: list[Builtin] = []

    def begin(**keys: Any) -> Builtin:
        store = tmp_path / "store"
        store.mkdir(exist_ok=True)
        server = Builtin(config(tmp_path, **keys), store, tmp_path / "run")
        server.__enter__()
        running.append(server)
        return server

    yield begin
    for server in running:
        server.__exit__(None, None, None)


def answer(server: Builtin, path: str = "m") -> Any:
    response = requests.post(f"{server.server.inference}/predictions/{path}", data=b"x", timeout=60)
    return response.json().get("version", response.status_code)


def wait_for(expected: Any, value: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE
    while (current := value()) != expected and time.monotonic() < until:
        time.sleep(0.1)
    assert current == expected


def versions(server: Builtin, name: str = "m") -> list[str]:
    response = requests.get(f"{server.server.management}/models/{name}/all", timeout=60)
    return [described["modelVersion"] for described in response.json()] if response.status_code == 200 else []


def test_a_base_path_is_served_as_by_tensorflow_serving(tmp_path: Path, start: Callable[..., Builtin]) -> None:
    base = tmp_path / "models" / "m"
    pack(tmp_path, base / "1.mar", "1.0")
    pack(tmp_path, base / "2.mar", "7.0")
    server = start(torchmar_model_base_paths={"m": str(base)})
    wait_for("7.0", lambda: answer(server))  # the number is that of the file
    assert versions(server) == ["2"]
    folder = pack(tmp_path, tmp_path / "built" / "x.mar", "3.0")
    archive_folder = tmp_path / "3"
    with archive.Archive(folder) as opened:
        opened.extract(archive_folder)
    archive_folder.rename(base / "3")
    wait_for("3.0", lambda: answer(server))
    wait_for(["3"], lambda: versions(server))
    shutil.rmtree(base / "3")
    wait_for("7.0", lambda: answer(server))
    wait_for(["2"], lambda: versions(server))


def test_no_request_is_lost_while_versions_change(tmp_path: Path, start: Callable[..., Builtin]) -> None:
    base = tmp_path / "models" / "m"
    pack(tmp_path, base / "1.mar", "1", seconds=0.05)
    server = start(torchmar_model_base_paths={"m": str(base)})
    wait_for("1", lambda: answer(server))
    answers: list[Any] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answers.append(answer(server))

    clients = [threading.Thread(target=client) for _ in range(4)]
    for running in clients:
        running.start()
    for version in ("2", "3"):
        pack(tmp_path, base / f"{version}.mar", version, seconds=0.05)
        wait_for([version], lambda: versions(server))
    wait_for(True, lambda: "3" in answers)  # the clients have sent a request since the last change
    stop.set()
    for running in clients:
        running.join()
    assert set(answers) == {"1", "2", "3"}
    assert answers == sorted(answers, key=str) or answers.index("3") > answers.index("2") > answers.index("1")


def test_a_file_that_is_being_copied_is_not_touched(tmp_path: Path, start: Callable[..., Builtin]) -> None:
    base = tmp_path / "models" / "m"
    pack(tmp_path, base / "1.mar", "1")
    server = start(torchmar_model_base_paths={"m": str(base)})
    wait_for("1", lambda: answer(server))
    whole = pack(tmp_path, tmp_path / "built" / "2.mar", "2").read_bytes()
    with (base / "2.mar").open("wb") as file:
        half = len(whole) // 2
        file.write(whole[:half])
        file.flush()
        time.sleep(2)  # two polls
        assert (answer(server), versions(server)) == ("1", ["1"])
        file.write(whole[half:])
    wait_for("2", lambda: answer(server))


def test_a_version_that_does_not_load_leaves_the_old_one(tmp_path: Path, start: Callable[..., Builtin]) -> None:
    base = tmp_path / "models" / "m"
    pack(tmp_path, base / "1.mar", "1")
    server = start(torchmar_model_base_paths={"m": str(base)})
    wait_for("1", lambda: answer(server))
    pack(tmp_path, base / "2.mar", "2", text="raise RuntimeError('never')\n")
    log = tmp_path / "run" / "logs" / "model_log.log"
    wait_for(True, lambda: any("2.mar is not served" in file.read_text() for file in log.parent.glob("*.log")))
    assert (answer(server), versions(server)) == ("1", ["1"])
    pack(tmp_path, base / "3.mar", "3")
    wait_for("3", lambda: answer(server))


def test_the_log_says_once_why_an_entry_is_not_served(tmp_path: Path, start: Callable[..., Builtin]) -> None:
    base = tmp_path / "models" / "m"
    whole = pack(tmp_path, base / "1.mar", "1")
    server = start(torchmar_model_base_paths={"m": str(base)}, torchmar_watch="latest")
    shutil.copy(whole, base / "m-1.0.mar")
    (base / "2.mar").write_bytes(whole.read_bytes()[:1000])
    shutil.copytree(FOLDER / "digits", base / "3")
    with archive.Archive(whole) as opened:
        opened.extract(base / "4")
    (base / "4" / "handler.py").unlink()
    (base / "README.md").write_text("not a version")
    (tmp_path / "store" / "broken.mar").write_bytes(b"")
    expected = {
        f"the name of {base}/m-1.0.mar is no number of a version, such as 1.mar",
        f"{base}/2.mar is not an archive: it has no zip directory; it may be truncated",
        f"{base}/3 is a SavedModel of TensorFlow: torchmar new m --from {base}/3 writes a recipe, of which "
        "torchmar build makes an archive",
        f"{base}/4 is incomplete: handler.py is missing",
        f"{tmp_path}/store/broken.mar is not an archive: it is empty",
    }

    def reasons() -> list[str]:
        lines = [line for file in (tmp_path / "run" / "logs").glob("*.log") for line in file.read_text().splitlines()]
        return [line.partition("not served: ")[2] for line in lines if "not served: " in line]

    wait_for(expected, lambda: set(reasons()))
    time.sleep(2)  # two polls
    assert sorted(reasons()) == sorted(expected)
    assert answer(server) == "1"
    pack(tmp_path, base / "2.mar", "2")
    wait_for("2", lambda: answer(server))


def test_policies_and_labels_choose_versions(tmp_path: Path, start: Callable[..., Builtin]) -> None:
    base = tmp_path / "models" / "m"
    for version in ("1", "2", "3"):
        pack(tmp_path, base / f"{version}.mar", version)
    labels = {"stable": 2, "canary": "3"}
    value = {"m": {"base_path": str(base), "versions": {"latest": 2}, "labels": labels}, "n": str(tmp_path / "none")}
    server = start(torchmar_model_base_paths=value)
    wait_for(["2", "3"], lambda: sorted(versions(server)))
    wait_for("3", lambda: answer(server))

    def labelled(label: str) -> Any:
        url = f"{server.server.inference}/v1/models/m/labels/{label}"
        return requests.get(url, timeout=60).json().get("model_version_status", [{}])[0].get("version")

    wait_for("2", lambda: labelled("stable"))
    wait_for("3", lambda: labelled("canary"))


def test_a_watched_store_serves_the_newest_of_each_model(tmp_path: Path, start: Callable[..., Builtin]) -> None:
    store = tmp_path / "store"
    pack(tmp_path, store / "m-1.9.mar", "1.9")
    pack(tmp_path, store / "other.mar", "1.0", name="n")
    server = start(torchmar_watch="latest")
    wait_for("1.9", lambda: answer(server))
    wait_for("1.0", lambda: answer(server, "n"))
    pack(tmp_path, store / "m-1.10.mar", "1.10")
    wait_for("1.10", lambda: answer(server))
    wait_for(["1.10"], lambda: versions(server))
    assert answer(server, "n") == "1.0"
