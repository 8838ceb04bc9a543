"""The built-in server serves models of OpenVINO, and of TensorFlow by their conversion, to clients of TensorFlow."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests import oracles
from tests.support import tensorflow_models
from tests.support.servers import write_config
from torchmar import archive
from torchmar.engines.builtin import Builtin

KNOWN = tensorflow_models.answers()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builtin]:
    """Run the built-in server with models that are converted; one of them has two workers."""
    folder = tmp_path_factory.mktemp("openvino")
    store = folder / "store"
    for name, weights, workers in (("named", "named", 2), ("digits", "digits", 1), ("lite", "digits.tflite", 1)):
        config = {"minWorkers": workers, "maxWorkers": workers, "batchSize": 4, "maxBatchDelay": 2}
        document = {"name": name, "version": "1.0", "handler": "torchmar_handlers.tensors", "weights": weights}
        project = folder / name
        project.mkdir()
        copy = shutil.copytree if (tensorflow_models.FOLDER / weights).is_dir() else shutil.copy
        copy(tensorflow_models.FOLDER / weights, project / weights)
        (project / "archive.yaml").write_text(json.dumps({**document, "config": {**config, "responseTimeout": 60}}))
        archive.build(project, store)
    (folder / "home").mkdir()
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(folder / "home"))
            running = stack.enter_context(Builtin(write_config(folder), store, folder / "run"))
        for path in store.glob("*.mar"):
            running.load(path)
        yield running
    # TorchServe's base handler imports OpenVINO, which would begin with a folder for its statistics.
    assert not (folder / "home" / "intel").exists()


@pytest.fixture(scope="module")
def token(server: Builtin) -> str:
    assert server.server.key_file
    return str(json.loads(server.server.key_file.read_text())["inference"]["key"])


@pytest.fixture(scope="module")
def post(server: Builtin, token: str) -> Callable[..., Any]:
    """Return a function that sends a request below ``/v1/models``."""

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


def test_clients_send_the_names_and_columns_of_the_signature(post: Callable[..., Any]) -> None:
    inputs = {"image": KNOWN["images"].tolist(), "temperature": KNOWN["temperature"].tolist()}
    outputs = post("named:predict", {"signature_name": "serving_default", "inputs": inputs})["outputs"]
    np.testing.assert_allclose(outputs["scores"], KNOWN["scores"], rtol=1e-4, atol=1e-4)
    assert outputs["digit"] == KNOWN["digit"].tolist()
    for name, expected in (("digits", "digits"), ("lite", "lite")):
        rows = post(f"{name}:predict", {"instances": KNOWN["images"].tolist()})["predictions"]
        np.testing.assert_allclose(rows, KNOWN[expected], atol=1e-5)


@pytest.mark.oracle
def test_tensorflows_client_has_the_answers_of_tensorflow(server: Builtin, token: str) -> None:
    python = oracles.python_of("tensorflow")
    environment = {
        **os.environ,
        "ADDRESS": server.server.grpc_inference.removeprefix("grpc://"),
        "MODELS": str(tensorflow_models.FOLDER),
        "TOKEN": token,
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    client = Path(oracles.__file__).with_name("tensorflow_saved_model.py")
    ran = subprocess.run([python, client], env=environment, capture_output=True, text=True, timeout=300)
    assert ran.stdout.splitlines()[-1:] == ["all as with TensorFlow"], ran.stdout + ran.stderr
