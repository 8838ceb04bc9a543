"""The built-in server serves models of OpenVINO, and of TensorFlow by their conversion, to clients of TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests

from tests.support import tensorflow_models
from tests.support.servers import write_config
from torchmar import archive
from torchmar.engines.builtin import Builtin
from torchmar_handlers.weights import openvino_ir

KNOWN = tensorflow_models.answers()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builtin]:
    """Run the built-in server with a model of OpenVINO in two workers."""
    folder = tmp_path_factory.mktemp("openvino")
    openvino = openvino_ir.imported()
    named = folder / "named"
    named.mkdir()
    model = openvino.Core().read_model(tensorflow_models.FOLDER / "named")
    openvino.save_model(model, named / "named.xml", compress_to_fp16=False)
    config = {"minWorkers": 2, "maxWorkers": 2, "batchSize": 4, "maxBatchDelay": 2, "responseTimeout": 60}
    document = {"name": "named", "version": "1.0", "handler": "torchmar_handlers.tensors", "weights": "named.xml"}
    (named / "archive.yaml").write_text(json.dumps({**document, "config": config}))
    store = folder / "store"
    built = archive.build(named, store)
    (folder / "home").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder / "home"))
        with Builtin(write_config(folder), store, folder / "run") as running:
            running.load(built.path)
            yield running
    # TorchServe's base handler imports OpenVINO, which would begin with a folder for its statistics.
    assert not (folder / "home" / "intel").exists()


@pytest.fixture(scope="module")
def post(server: Builtin) -> Callable[..., Any]:
    assert server.server.key_file
    token = json.loads(server.server.key_file.read_text())["inference"]["key"]

    def post(path: str, body: Any) -> Any:
        url = f"{server.server.inference}/v1/models/{path}"
        got = requests.post(url, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        assert got.status_code == 200, got.text
        return got.json()

    return post


def test_two_workers_answer_as_tensorflow_does(server: Builtin, post: Callable[..., Any]) -> None:
    instances = [
        {"image": image.tolist(), "temperature": temperature.tolist()}
        for image, temperature in zip(KNOWN["images"], KNOWN["temperature"], strict=True)
    ]
    (described,) = server.management.describe("named")
    assert described.ready == 2

    def scores(place: int) -> list[float]:
        return post("named:predict", {"instances": [instances[place]]})["predictions"][0]["scores"]  # type: ignore[no-any-return]

    places = [place % len(instances) for place in range(60)]
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(scores, places))
    np.testing.assert_allclose(got, KNOWN["scores"][places], rtol=1e-4, atol=1e-4)
