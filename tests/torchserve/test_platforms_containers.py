"""What is exported for Vertex AI and SageMaker also works in their own containers, which run TorchServe.

The configurations are those of Google's container (its envelope, and a model called model) and of AWS's toolkit 2.0.25
(https://pypi.org/project/sagemaker-pytorch-inference/).
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch

from tests.support.command import torchmar
from tests.support.packing import pack_handler
from tests.support.servers import ENGINES, on_both_engines, write_config
from tests.support.startup import OPEN, SECONDS, address
from torchmar.engines import EngineName
from torchmar.engines.builtin import Builtin

# A handler of a user's own, whose envelope no server can leave out.
HANDLER = """
from torchmar_handlers.tabular_regressor import TabularRegressor


class Handler(TabularRegressor):
    pass
"""
ROWS = [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 5, "b": 6}]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``model.mar`` and the content of ``model.tar.gz`` in ``model/``."""
    folder = tmp_path_factory.mktemp("exported")
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Identity()), stream)
    options = {"columns": [{"name": "a"}, {"name": "b"}]}
    config = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 4, "maxBatchDelay": 50, "handler": options}
    disk = {"model.pt": stream.getvalue()}
    built = pack_handler(folder, HANDLER, name="sums", version="2.0", disk=disk, weights="model.pt", config=config)
    torchmar("export", "vertex", built, "-o", ".", cwd=folder)
    torchmar("export", "sagemaker", built, "-o", ".", cwd=folder)
    with tarfile.open(folder / "model.tar.gz") as packed:
        packed.extractall(folder / "model", filter="data")
    return folder


@pytest.fixture(scope="module")
def google(engine: EngineName, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("google")
    config = write_config(place, load_models="model.mar", service_envelope="json", **OPEN)
    with ENGINES[engine](config, exported, place / "run") as server:
        assert not isinstance(server, Builtin) or server.wait_until_loaded(SECONDS)
        yield address(server.folder / "config.properties")


@pytest.fixture(scope="module")
def aws(engine: EngineName, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("aws")
    config = write_config(
        place,
        load_models=f"model={exported}/model",
        default_service_handler="sagemaker_pytorch_serving_container.handler_service:handle",
        decode_input_request="false",
        allowed_urls=f"file://{exported}/.*",
        **OPEN,
    )
    (place / "store").mkdir()
    with ENGINES[engine](config, place / "store", place / "run") as server:
        assert not isinstance(server, Builtin) or server.wait_until_loaded(SECONDS)
        yield address(server.folder / "config.properties")


@on_both_engines
def test_googles_container_serves_model_mar_with_several_instances(google: str) -> None:
    url = f"{google}/predictions/model"
    answer = requests.post(url, json={"instances": ROWS}, timeout=SECONDS)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [[1, 2], [3, 4], [5, 6]]})
    one = requests.post(url, json={"instances": [[7, 8]]}, timeout=SECONDS)
    assert one.json() == {"predictions": [[7, 8]]}
    wrong = requests.post(url, json={"instances": [{"a": 7, "b": "x"}]}, timeout=SECONDS)
    assert wrong.status_code == 400 and "b" in wrong.json()["message"]


@on_both_engines
def test_awss_container_serves_model_tar_gz_by_its_own_handler(aws: str) -> None:
    for path in ("/invocations", "/predictions/model"):
        answer = requests.post(f"{aws}{path}", json={"instances": ROWS}, timeout=SECONDS)
        assert (answer.status_code, answer.json()) == (200, {"predictions": [[1, 2], [3, 4], [5, 6]]})
    assert requests.post(f"{aws}/invocations", json={"a": 1, "b": 2}, timeout=SECONDS).json() == [1, 2]
