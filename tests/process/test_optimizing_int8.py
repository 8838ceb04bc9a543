"""int8 weights of ONNX Runtime and OpenVINO, and the gate that holds them to the original's answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from torchmar.optimizing import agreement, gate, requirements
from torchmar.optimizing.agreement import Outputs
from torchmar.optimizing.process import attempts, onnxruntime_int8, openvino_int8, processor
from torchmar.optimizing.process.attempts import Calibration
from torchmar.optimizing.process.jobs import NotApplicable
from torchmar.optimizing.results import Verdict
from torchmar_handlers.weights import machine, optimized

REQUIRED = requirements.required(["labels>=0.95,cos>=0.98"], requirements.CLASSIFIER)
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


def written(file: Path, *nodes: Any, weights: Any = None) -> Path:
    """Write an ONNX model from ``pixels`` to ``logits``."""
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["rows", 1, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network whose scores are far apart."""
    generator = np.random.default_rng(3)

    def weight(*shape: int) -> np.ndarray:
        return generator.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)

    node = helper.make_node
    return written(
        tmp_path_factory.mktemp("float") / "model.onnx",
        node("Conv", ["pixels", "first"], ["a"], name="first_layer", strides=[2, 2]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "second"], ["c"], name="second_layer", strides=[2, 2]),
        node("Relu", ["c"], ["d"]),
        node("Flatten", ["d"], ["e"]),
        node("Gemm", ["e", "last", "bias"], ["logits"], name="last_layer", transB=1, alpha=10.0),
        weights={
            "first": weight(16, 1, 3, 3),
            "second": weight(32, 16, 3, 3),
            "last": weight(8, 288),
            "bias": weight(8, 8)[0],
        },
    )


def calibration(inputs: Sequence[Any] = (), seconds: float = 60) -> Calibration:
    return Calibration(inputs=inputs, required=REQUIRED, kind=requirements.CLASSIFIER, threads=1, seconds=seconds)


def by_onnxruntime(model: Path, inputs: Sequence[Any], folder: Path) -> Callable[[Inputs], list[Outputs]]:
    target = folder / "model.onnx"
    onnxruntime_int8.quantise(model, calibration(inputs), target)
    assert b"QuantizeLinear" in target.read_bytes()
    return lambda inputs: onnxruntime_int8.outputs(target, inputs, 1)


def by_openvino(model: Path, inputs: Sequence[Any], folder: Path) -> Callable[[Inputs], list[Outputs]]:
    pytest.importorskip("nncf")
    openvino, _ = openvino_int8.imported()
    target = folder / "model.xml"
    read = openvino.Core().read_model
    openvino_int8.quantise(read(model), calibration(inputs), target)
    assert b"FakeQuantize" in target.read_bytes()
    return lambda inputs: openvino_int8.outputs(read(target), inputs, 1)


BACKENDS = pytest.mark.parametrize("quantise", [by_onnxruntime, by_openvino])


def judgement(model: Path, answers: Callable[[Inputs], list[Outputs]]) -> gate.Judgement:
    held_out = images(99, seed=2)
    baseline = onnxruntime_int8.outputs(model, held_out, 1)
    names = [f"square-{place}" for place in range(len(held_out))]
    separate, names = agreement.by_instance(baseline, names, [1] * len(names))
    variant, _ = agreement.by_instance(answers(held_out), names, [1] * len(names))
    return gate.judge(separate, variant, names, REQUIRED, requirements.CLASSIFIER)


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


def test_weights_for_processors_without_instructions_for_int8_are_near_and_need_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(machine.MASK, ",".join(processor.FLAGS["int8"]))
    agreement = judgement(model, by_openvino(model, images(16, seed=1), tmp_path)).agreement
    assert agreement and agreement.cosine > 0.95  # with 7 bits, labels of scores that are close are others
    assert processor.needs("int8") == ()


@pytest.mark.skipif(not processor.needs("int8"), reason="this processor has no instructions for int8")
def test_int8_weights_are_served_where_the_processor_has_their_instructions(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_openvino(model, images(16, seed=1), tmp_path)
    shutil.copy(model, tmp_path / "original.onnx")
    section = {"weights": "model.xml", "needs": processor.needs("int8")}

    def served() -> optimized.ServedWeights:
        options = {"optimized": section}
        return optimized.load(tmp_path, "original.onnx", None, torch.device("cpu"), options, threads=1)

    assert served().optimized
    monkeypatch.setenv(machine.MASK, ",".join(processor.FLAGS["int8"]))
    original = served()
    assert (original.optimized, original.file) == (False, "original.onnx")
    assert "this processor has n" in original.reason


def test_what_has_no_weights_to_quantise_is_said(tmp_path: Path) -> None:
    file = written(tmp_path / "softmax.onnx", helper.make_node("Softmax", ["pixels"], ["logits"]))
    with pytest.raises(NotApplicable, match="no convolution and no product of matrices"):
        onnxruntime_int8.quantise(file, calibration(images(2, 0)), tmp_path / "model.onnx")


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
            calibration(seconds=seconds),
        )
        assert attempt.title == note.partition(":")[0]
        return note, (tmp_path / "model").read_text()

    assert chosen("far", "same", "near") == ("same", "same")
    note, kept = chosen("near", "far")
    assert kept == "near" and note.startswith("near: the best of 2 attempts")
    assert chosen("far", "same", seconds=-1)[1] == "far"


def test_a_model_of_a_fixed_number_of_rows_is_calibrated_with_as_many(model: Path) -> None:
    from torchmar.optimizing.process import source
    from torchmar.optimizing.process.captured import Captured
    from torchmar.optimizing.process.jobs import Weights
    from torchmar_handlers.weights import onnx_runtime

    fixed = model.with_name("fixed.onnx")
    loaded = onnx.load(model)
    loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(loaded, fixed)
    original = source.Source(
        weights=Weights(folder=str(fixed.parent), serialized_file=fixed.name),
        module=onnx_runtime.load(fixed, torch.device("cpu"), 1),
        path=fixed,
        kind="an ONNX model",
        input_names=("pixels",),
        output_names=("logits",),
    )
    picture = torch.from_numpy(images(1, 0)[0]["pixels"])
    made = attempts.calibration(original, [Captured("a", (picture,), {})], [], "", 60.0)
    (outputs,) = onnxruntime_int8.outputs(fixed, made.inputs, 1)
    assert outputs["logits"].shape == (4, 8)


def test_transformers_are_known_by_products_behind_a_softmax() -> None:
    block = ["MatMul", "MatMul", "MatMul", "MatMul", "Softmax", "MatMul", "MatMul", "Gemm", "Gemm"]
    assert attempts.is_transformer(block)
    assert not attempts.is_transformer(["Conv", "Relu", "Conv", "Gemm", "Softmax"])
    assert not attempts.is_transformer(["Gemm", "Gemm", "Softmax"])
