"""A model may be a folder without MAR-INF, as SageMaker lays models out; its handler is named elsewhere."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.servers import ENGINES, on_both_engines, write_config
from tests.support.startup import OK, OPEN, SECONDS, address, post
from torchmar.engines import EngineName
from torchmar.engines.engine import Engine

# A handler of the shape of SageMaker's: an instance that a function calls, and code in the model's folder.
SERVICE = """
import os, sys

class Service:
    def __init__(self):
        self.initialized = False

    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        sys.path.insert(0, os.path.join(folder, "code"))
        import inference
        self.model = inference.model_fn(folder)
        self.initialized = True

_service = Service()

def handle(rows, context):
    if not _service.initialized:
        _service.initialize(context)
    return None if rows is None else [_service.model] * len(rows)
"""
INFERENCE = "import os\ndef model_fn(folder):\n    return open(os.path.join(folder, 'model.pt')).read()\n"
HANDLER = "toolkit_like.handler_service:handle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sagemaker")
    (root / "store").mkdir()
    for name, text in {
        "model/model.pt": "weights",
        "model/code/inference.py": INFERENCE,
        "elsewhere/model.pt": "others",
        "elsewhere/code/inference.py": INFERENCE,
        "lib/toolkit_like/__init__.py": "",
        "lib/toolkit_like/handler_service.py": SERVICE,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(scope="module")
def toolkit(engine: EngineName, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Run a server with the configuration that SageMaker's toolkit writes."""
    place = tmp_path_factory.mktemp("toolkit")
    config = write_config(
        place,
        vmargs="-XX:-UseContainerSupport",
        load_models=f"model={folder}/model",
        default_service_handler=HANDLER,
        decode_input_request="false",
        allowed_urls=f"file://{folder}/model,file://{folder}/store/.*",
        **OPEN,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "lib"), prepend=os.pathsep)
        with ENGINES[engine](config, folder / "store", place / "run") as server:
            yield server


@on_both_engines
def test_a_folder_that_is_named_at_the_start_is_served(toolkit: Engine) -> None:
    config = toolkit.folder / "config.properties"
    for path in ("/predictions/model", "/invocations", "/models/model/invoke"):
        assert post(f"{address(config)}{path}").text == "weights"
    assert toolkit.management.describe("model")[0].version == "1.0"


@on_both_engines
@pytest.mark.parametrize("handler", [HANDLER, None])
def test_a_folder_is_registered_with_a_handler_of_its_own_or_the_default_one(
    toolkit: Engine, folder: Path, handler: str | None
) -> None:
    toolkit.management.register(f"{folder}/model", model_name="m", handler=handler, initial_workers=1)
    try:
        assert post(f"{address(toolkit.folder / 'config.properties')}/predictions/m").text == "weights"
    finally:
        toolkit.management.unregister("m")


@pytest.mark.parametrize("engine", ["builtin"], scope="module", indirect=True)
def test_a_folder_that_is_not_allowed_is_not_registered(toolkit: Engine, folder: Path) -> None:
    management = address(toolkit.folder / "config.properties", "management")
    query = {"url": f"{folder}/elsewhere", "model_name": "e", "handler": HANDLER}
    answer = requests.post(f"{management}/models", params=query, timeout=SECONDS)
    assert answer.status_code == 404
    assert f"allowed_urls must match file://{folder}/elsewhere" in answer.json()["message"]


def test_a_folder_without_a_handler_is_reported(folder: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, load_models=f"model={folder}/model", **OPEN)
    with ENGINES["builtin"](config, folder / "store", tmp_path / "run") as server:
        report = server.wait_until_loaded(SECONDS)  # type: ignore[attr-defined]
        (failure,) = report.failures
        assert "it is a folder without MAR-INF/MANIFEST.json; name one with handler=" in failure.message


@on_both_engines
@pytest.mark.parametrize("packed", [True, False])
def test_weights_that_the_handler_never_opens_may_be_empty(engine: EngineName, tmp_path: Path, packed: bool) -> None:
    """As in most archives of TorchServe's own tests."""
    store = tmp_path / "store"
    model = {"modelName": "noop", "serializedFile": "model.pt", "handler": "service.py", "modelVersion": "1.11"}
    members = {
        "MAR-INF/MANIFEST.json": json.dumps({"runtime": "python", "model": model, "archiverVersion": "0.12.0"}),
        "model.pt": "",
        "service.py": OK,
    }
    store.mkdir()
    if packed:
        with zipfile.ZipFile(store / "noop.mar", "w") as archive:
            for name, text in members.items():
                archive.writestr(name, text)
    else:
        for name, text in members.items():
            (store / "noop" / name).parent.mkdir(parents=True, exist_ok=True)
            (store / "noop" / name).write_text(text)
    config = write_config(tmp_path, **OPEN)
    with ENGINES[engine](config, store, tmp_path / "run") as server:
        server.management.register("noop.mar" if packed else "noop", initial_workers=1)
        assert post(f"{address(config)}/predictions/noop").text == "ok"
