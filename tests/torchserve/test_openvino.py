"""TorchServe, unchanged, serves models of OpenVINO where OpenVINO is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from tests.support import tensorflow_models
from tests.support.servers import write_config
from torchmar import archive
from torchmar.engines.torchserve import TorchServe
from torchmar.exchange import Request
from torchmar.inference import InferenceClient


def test_torchserve_answers_as_tensorflow_does(tmp_path: Path) -> None:
    known = tensorflow_models.answers()
    project = tmp_path / "named"
    shutil.copytree(tensorflow_models.FOLDER / "named", project / "named")
    document = {"name": "named", "version": "1.0", "handler": "torchmar_handlers.tensors", "weights": "named"}
    (project / "archive.yaml").write_text(json.dumps({**document, "config": {"responseTimeout": 60}}))
    store = tmp_path / "store"
    built = archive.build(project, store)
    row = {"image": known["images"][0].tolist(), "temperature": known["temperature"][0].tolist()}
    with TorchServe(write_config(tmp_path), store, tmp_path / "run") as running:
        running.load(built.path)
        request = Request(json.dumps(row).encode(), "application/json")
        answer = InferenceClient(running.server).request("named", request)
    document = json.loads(answer.body)
    np.testing.assert_allclose(document["scores"], known["scores"][0], rtol=1e-4, atol=1e-4)
    assert document["digit"] == known["digit"][0]
