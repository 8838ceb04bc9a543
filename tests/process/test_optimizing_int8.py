"""int8 weights of ONNX Runtime and OpenVINO, and the gate that holds them to the original's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torchmar.optimizing import gate
from torchmar.optimizing.process import attempts, onnxruntime_int8, openvino_int8
from torchmar.optimizing.process.jobs import NotApplicable
from torchmar.optimizing.results import Verdict

REQUIRED = gate.requirements(["labels>=0.95,cos>=0.98"], gate.CLASSIFIER)
Inputs = list[dict[str, np.ndarray]]


def images(count: int, seed: int) -> Inputs:
    """Return bright squares on noise, whose place is what a network can see."""
    generator = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        picture = generator.normal(0, 0.2, (1, 1, 16, 16)).astype(np.float32)
        top, left = generator.integers(0, 12, 2)
        picture[..., top : top + 4, left : left + 4] += 3
        pictures.append({"pixels": picture})
    return pictures


class Network(nn.Module):
    """A small network whose scores are far apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(288, 8),
        )  # fmt: skip

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(pixels) * 10
        return scores


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(Network(), tmp_path_factory.mktemp("float") / "model.onnx")


def exported(network: nn.Module, file: Path) -> Path:
    torch.onnx.export(
        network.eval(), (torch.zeros(2, 1, 16, 16),), str(file), input_names=["pixels"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("rows")},), dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    return file


def by_onnxruntime(model: Path, calibration: Sequence[Any], folder: Path) -> Callable[[Inputs], list[gate.Outputs]]:
    target = folder / "model.onnx"
    onnxruntime_int8.quantise(model, calibration, target, REQUIRED, gate.CLASSIFIER, threads=1, seconds=60)
    assert b"QuantizeLinear" in target.read_bytes()
    return lambda inputs: onnxruntime_int8.outputs(target, inputs, 1)


def by_openvino(model: Path, calibration: Sequence[Any], folder: Path) -> Callable[[Inputs], list[gate.Outputs]]:
    pytest.importorskip("nncf")
    openvino, _ = openvino_int8.imported()
    target = folder / "model.xml"
    read = openvino.Core().read_model
    openvino_int8.quantise(read(model), calibration, target, REQUIRED, gate.CLASSIFIER, threads=1, seconds=60)
    assert b"FakeQuantize" in target.read_bytes()
    return lambda inputs: openvino_int8.outputs(read(target), inputs, 1)


BACKENDS = pytest.mark.parametrize("quantise", [by_onnxruntime, by_openvino])


def judgement(model: Path, answers: Callable[[Inputs], list[gate.Outputs]]) -> gate.Judgement:
    held_out = images(99, seed=2)
    baseline = onnxruntime_int8.outputs(model, held_out, 1)
    names = [f"square-{place}" for place in range(len(held_out))]
    separate, names = gate.by_instance(baseline, names, [1] * len(names))
    variant, _ = gate.by_instance(answers(held_out), names, [1] * len(names))
    return gate.judge(separate, variant, names, REQUIRED, gate.CLASSIFIER)


@BACKENDS
def test_int8_agrees_after_calibration_with_inputs_like_those_that_judge(
    quantise: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    judged = judgement(model, quantise(model, images(16, seed=1), tmp_path))
    assert judged.accepted, judged.reason
    assert judged.agreement and judged.agreement.relative_error > 0  # it is not the original


@BACKENDS
def test_a_bad_calibration_set_is_rejected(quantise: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    black = [{"pixels": np.full((1, 1, 16, 16), 0.001 * place, np.float32)} for place in range(16)]
    judged = judgement(model, quantise(model, black, tmp_path))
    assert judged.verdict is Verdict.REJECTED
    assert "square-" in judged.reason


def test_what_has_no_weights_to_quantise_is_said(tmp_path: Path) -> None:
    file = exported(nn.Softmax(1), tmp_path / "softmax.onnx")
    with pytest.raises(NotApplicable, match="no convolution and no product of matrices"):
        onnxruntime_int8.quantise(
            file, images(2, 0), tmp_path / "model.onnx", REQUIRED, gate.CLASSIFIER, threads=1, seconds=9
        )


def test_the_first_attempt_that_agrees_is_taken_else_the_nearest(tmp_path: Path) -> None:
    baseline = [{"logits": np.eye(8)[place % 8]} for place in range(20)]
    turned = {name: [{"logits": np.roll(each["logits"], 1) * share + each["logits"]} for each in baseline]
              for name, share in (("far", 3.0), ("near", 0.9), ("same", 0.0))}  # fmt: skip

    def chosen(*names: str, seconds: float = 60) -> tuple[str, str]:
        tried = [attempts.Attempt(name, lambda path, name=name: path.write_text(name)) for name in names]
        attempt, note = attempts.first_that_agrees(
            tried,
            tmp_path / "model",
            lambda path, _: turned[path.read_text()],
            baseline,
            REQUIRED,
            gate.CLASSIFIER,
            seconds=seconds,
        )
        assert attempt.title == note.partition(":")[0]
        return note, (tmp_path / "model").read_text()

    assert chosen("far", "same", "near") == ("same", "same")
    note, kept = chosen("near", "far")
    assert kept == "near" and note.startswith("near: the best of 2 attempts")
    assert chosen("far", "same", seconds=-1)[1] == "far"


def test_transformers_are_known_by_products_behind_a_softmax() -> None:
    block = ["MatMul", "MatMul", "MatMul", "MatMul", "Softmax", "MatMul", "MatMul", "Gemm", "Gemm"]
    assert attempts.is_transformer(block)
    assert not attempts.is_transformer(["Conv", "Relu", "Conv", "Gemm", "Softmax"])
    assert not attempts.is_transformer(["Gemm", "Gemm", "Softmax"])
