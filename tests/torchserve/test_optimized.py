"""Both servers, with torchmar's handlers, serve optimised weights, explain with the original ones, and fall back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import optimized_models as models
from tests.support.servers import ENGINES, on_both_engines, write_config
from torchmar import archive
from torchmar.engines import EngineName
from torchmar.engines.engine import Engine
from torchmar.exchange import Request
from torchmar.inference import InferenceClient
from torchmar.optimized_section import CPU_FLAGS
from torchmar_handlers.weights import machine, openvino_ir

NPY = "application/x-npy"
NET = models.net(models.ImageNet)
FLAGS = sorted(machine.cpu_flags() & {*CPU_FLAGS})

pytestmark = pytest.mark.skipif(len(FLAGS) < 2, reason="the flags of this processor are not known")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, engine: EngineName) -> Iterator[Engine]:
    """Run a server with OpenVINO's weights: that load, that need a flag which is masked, and that are damaged."""
    folder = tmp_path_factory.mktemp("optimized")
    (folder / "store").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(machine.MASK, FLAGS[1])
        with ENGINES[engine](write_config(folder), folder / "store", folder / "run") as running:
            for name, flag in (("net", FLAGS[0]), ("masked", FLAGS[1]), ("damaged", FLAGS[0])):
                running.load(archive.build(project(folder / name, flag), folder / "store").path)
            yield running


def project(folder: Path, flag: str) -> Path:
    """Write a recipe whose optimised weights need a flag."""
    folder.mkdir()
    models.save_script(NET, folder / "net.pt")
    models.save_onnx(NET, folder / "optimized" / "net.onnx", torch.zeros(1, 1, 8, 8), shift=0)
    openvino = openvino_ir.imported()
    model = openvino_ir.shared_core().read_model(folder / "optimized" / "net.onnx")
    openvino.save_model(model, folder / "optimized" / "net.xml", compress_to_fp16=False)
    if folder.name == "damaged":
        (folder / "optimized" / "net.bin").write_bytes(b"short")
    config: dict[str, Any] = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 4, "maxBatchDelay": 2}
    if folder.name == "net":
        config["stages"] = {"preprocess": 1, "inference": 1, "postprocess": 1}  # of the built-in server
    section = {"weights": "optimized/net.xml", "needs": [flag]}
    return models.image_project(folder, section, name=folder.name, more_config=config)


def weights_of(served: Engine, name: str) -> Any:
    (described,) = served.management.describe(name, customized=True)
    assert described.customized
    return described.customized["weights"]


@on_both_engines
def test_predictions_are_those_of_the_optimised_weights_and_the_original_explains(served: Engine) -> None:
    client = InferenceClient(served.server)
    assert weights_of(served, "net") == {"file": "optimized/net.xml", "optimized": True}
    body = models.npy(models.image())
    answer = client.request("net", Request(body, NPY))
    expected = models.probabilities(NET, models.image())
    assert list(json.loads(answer.body).values()) == pytest.approx(sorted(expected, reverse=True), abs=1e-4)
    explained = client.request("net", Request(body, NPY, explain=True, accept="application/json"))
    assert explained.headers["explain-weights"] == json.loads(explained.body)["weights"] == "original"
    assert json.loads(explained.body)["method"] == "integrated_gradients"


@on_both_engines
def test_the_original_is_served_where_a_flag_is_missing_or_the_weights_do_not_load(served: Engine) -> None:
    client = InferenceClient(served.server)
    reasons = {name: weights_of(served, name) for name in ("masked", "damaged")}
    assert reasons["masked"] == {
        "file": "net.pt",
        "optimized": False,
        "reason": f"this processor has no {FLAGS[1]}",
    }
    assert (reasons["damaged"]["file"], reasons["damaged"]["optimized"]) == ("net.pt", False)
    assert "net.xml is an OpenVINO model that OpenVINO" in reasons["damaged"]["reason"]
    expected = sorted(models.probabilities(NET, models.image()), reverse=True)
    for name in reasons:
        answer = client.request(name, Request(models.npy(models.image()), NPY))
        assert list(json.loads(answer.body).values()) == pytest.approx(expected, abs=1e-5)
        explained = client.request(name, Request(models.npy(models.image()), NPY, explain=True))
        assert "explain-weights" not in explained.headers
