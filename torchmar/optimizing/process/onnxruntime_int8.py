"""ONNX models with int8 weights, made by ONNX Runtime's quantisation.

Convolutional models are quantised statically: weights and activations, with the ranges that activations have for the
calibration inputs. Transformers are quantised dynamically: only weights, with ranges of activations found at run time,
because a few large activations would leave no resolution for all others.

Activations are uint8 and weights int8, the fastest types of ONNX Runtime. Without VNNI or AMX, AVX2 and AVX-512 add
pairs of products in 16 bits, which saturate; weights then have 7 bits. Weights with 8 bits need VNNI or AMX.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchmar.optimizing.agreement import Outputs
from torchmar.optimizing.process import attempts, exporting, processor
from torchmar.optimizing.process.attempts import Arrays, Attempt, Calibration
from torchmar.optimizing.process.captured import Captured
from torchmar.optimizing.process.jobs import Made
from torchmar.optimizing.process.source import Source

FILE = "model.onnx"
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def make_onnxruntime_int8(
    source: Source,
    inputs: Sequence[Captured],
    folder: Path,
    required: Sequence[str] = (),
    handler: str = "",
    seconds: float = 120.0,
) -> Made:
    """Write the weights as an ONNX model with int8 weights.

    Args:
        source: the original.
        inputs: recorded inputs for the calibration; none of them judges the variant.
        folder: folder for the file.
        required: requirements of agreement, as the user gave them; the first attempt that meets them on the calibration
            inputs is used.
        handler: handler of the archive, as its manifest names it.
        seconds: time after which no further attempt starts.

    Raises:
        NotApplicable: there are no inputs, or the model has nothing that int8 makes faster.
    """
    attempts.check_inputs(inputs)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".float-") as work:
        model = source.path
        if model is None or source.format != "ONNX":
            model = Path(work, FILE)
            exporting.onnx(source, inputs, model)
        calibration = attempts.calibration(source, inputs, required, handler, seconds)
        _, note = quantise(model, calibration, folder / FILE)
    return Made(files=(FILE,), needs=processor.needs("int8"), packages=("onnxruntime",), note=note)


def quantise(model: Path, calibration: Calibration, target: Path) -> tuple[Attempt, str]:
    """Write an ONNX model with int8 weights, and return the attempt and its description in words.

    Args:
        model: an ONNX file in float32.
        calibration: calibration inputs, and requirements on them.
        target: path of the new file.

    Raises:
        NotApplicable: the model has nothing that int8 makes faster.
    """
    import onnx

    kinds = [node.op_type for node in onnx.load(model, load_external_data=False).graph.node]
    attempts.check_kinds(kinds, _WEIGHTED, ("QuantizeLinear", "DynamicQuantizeLinear"))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".prepared-") as folder:
        prepared = _prepared(model, Path(folder))
        return attempts.first_that_agrees(
            _dynamic(prepared) if attempts.is_transformer(kinds) else _static(prepared, calibration.inputs, kinds),
            target,
            lambda path, _: outputs(path, calibration.inputs, calibration.threads),
            outputs(model, calibration.inputs, calibration.threads),
            calibration,
        )


def outputs(model: Path, inputs: Sequence[Arrays], threads: int) -> list[Outputs]:
    """Return the outputs of an ONNX model for inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, map(np.asarray, session.run(None, dict(item))), strict=True)) for item in inputs]


def _prepared(model: Path, folder: Path) -> Path:
    """Return the model with inferred shapes, and with normalisations folded into convolutions."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    target = folder / "prepared.onnx"
    with _quiet():
        try:
            quant_pre_process(model, target)
        except Exception:  # any error: the model has an operation whose symbolic shapes are unknown
            quant_pre_process(model, target, skip_symbolic_shape=True)
    return target


def _static(prepared: Path, calibration: Sequence[Arrays], kinds: Sequence[str]) -> list[Attempt]:
    weighted = [kind for kind in _WEIGHTED if kind in kinds]
    edges = sensitive(prepared)

    def attempt(title: str, kinds: Sequence[str], floats: Sequence[str] = ()) -> Attempt:
        return Attempt(title, lambda path: _quantise_statically(prepared, path, calibration, kinds, floats))

    return [
        attempt("static, all operations", []),
        attempt("static, operations with weights", weighted),
        attempt(f"static, operations with weights, {len(edges)} of them in float32", weighted, edges),
    ]


def sensitive(model: Path) -> list[str]:
    """Return the nodes to which int8 does most harm for least gain: the first, the last, depthwise convolutions."""
    import onnx

    weighted = [node for node in onnx.load(model, load_external_data=False).graph.node if node.op_type in _WEIGHTED]
    depthwise = (
        node.name
        for node in weighted
        if any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    )
    return sorted({weighted[0].name, weighted[-1].name, *depthwise})


def _dynamic(prepared: Path) -> list[Attempt]:
    return [
        Attempt("dynamic, a scale per tensor", lambda path: _quantise_dynamically(prepared, path, per_channel=False)),
        Attempt("dynamic, a scale per channel", lambda path: _quantise_dynamically(prepared, path, per_channel=True)),
    ]


def _quantise_statically(
    prepared: Path, target: Path, calibration: Sequence[Arrays], kinds: Sequence[str], floats: Sequence[str]
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Reads the calibration inputs once."""

        def __init__(self) -> None:
            self._inputs = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            return None if (arrays := next(self._inputs, None)) is None else dict(arrays)

    with _quiet():
        quantize_static(
            prepared,
            target,
            Reader(),
            op_types_to_quantize=list(kinds),
            nodes_to_exclude=list(floats),
            per_channel=True,
            reduce_range=not processor.needs("int8"),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def _quantise_dynamically(prepared: Path, target: Path, *, per_channel: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            prepared,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=per_channel,
            reduce_range=not processor.needs("int8"),
            weight_type=QuantType.QInt8,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log no warnings of the quantisation, whose advice is followed already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
