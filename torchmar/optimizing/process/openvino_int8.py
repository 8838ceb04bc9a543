"""OpenVINO models with int8 weights and activations, made by NNCF's post-training quantisation."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchmar.optimizing.agreement import Outputs
from torchmar.optimizing.process import attempts, exporting, processor
from torchmar.optimizing.process.attempts import Arrays, Attempt, Calibration
from torchmar.optimizing.process.captured import Captured
from torchmar.optimizing.process.jobs import Made, NotApplicable
from torchmar.optimizing.process.source import Source

_WEIGHTED = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})
FILES = ("model.xml", "model.bin")


def make_openvino_int8(
    source: Source,
    inputs: Sequence[Captured],
    folder: Path,
    required: Sequence[str] = (),
    handler: str = "",
    seconds: float = 120.0,
) -> Made:
    """Write the weights as a model of OpenVINO with int8 weights.

    Args:
        source: the original.
        inputs: recorded inputs for the calibration; none of them judges the variant.
        folder: folder for the files.
        required: requirements of agreement, as the user gave them; the first attempt that meets them on the calibration
            inputs is used.
        handler: handler of the archive, as its manifest names it.
        seconds: time after which no further attempt starts.

    Raises:
        NotApplicable: there are no inputs, NNCF is not installed, or the model has nothing that int8 makes
            faster.
    """
    attempts.check_inputs(inputs)
    model = exporting.openvino(source, inputs)
    calibration = attempts.calibration(source, inputs, required, handler, seconds)
    attempt, note = quantise(model, calibration, folder / FILES[0])
    options = {} if attempt.dtype is None else {"dtype": attempt.dtype}
    needs = (*processor.needs("int8"), *(() if attempt.dtype is None else processor.needs(attempt.dtype)))
    return Made(options=options, files=FILES, needs=needs, packages=("openvino",), note=note)


def quantise(model: Any, calibration: Calibration, target: Path) -> tuple[Attempt, str]:
    """Write a model with int8 weights, and return the attempt and its description in words.

    Args:
        model: model of OpenVINO, in float32.
        calibration: calibration inputs, and requirements on them.
        target: path of the new ``.xml`` file, with a ``.bin`` beside it.

    Raises:
        NotApplicable: NNCF is not installed, or the model has nothing that int8 makes faster.
    """
    from torchmar_handlers.weights import openvino_ir

    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    attempts.check_kinds(kinds, _WEIGHTED, ("FakeQuantize",))
    openvino, nncf = imported()
    inputs, threads = calibration.inputs, calibration.threads
    return attempts.first_that_agrees(
        _attempts(openvino, nncf, folded(model), inputs, transformer=attempts.is_transformer(kinds)),
        target,
        lambda path, dtype: outputs(openvino_ir.shared_core().read_model(path), inputs, threads, dtype),
        outputs(model, inputs, threads),
        calibration,
    )


def imported() -> tuple[Any, Any]:
    """Import OpenVINO and NNCF without the package by which both send statistics.

    Raises:
        NotApplicable: NNCF is not installed.
    """
    from torchmar_handlers.weights import openvino_ir

    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    openvino = openvino_ir.imported()
    try:
        import nncf
    except ImportError as error:
        raise NotApplicable(f"NNCF cannot be imported ({error}): pip install 'torchmar[optimize]'") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return openvino, nncf


def outputs(model: Any, inputs: Sequence[Arrays], threads: int, dtype: str | None = None) -> list[Outputs]:
    """Return the outputs of a model of OpenVINO for inputs, computed as by handlers with the option ``dtype``."""
    from torchmar_handlers.weights import openvino_ir

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32" if dtype is None else "bf16",
        "EXECUTION_MODE_HINT": "ACCURACY" if dtype is None else "PERFORMANCE",
    }
    compiled = openvino_ir.shared_core().compile_model(model, "CPU", settings)
    names = openvino_ir.names(model.outputs, "output")
    return [
        dict(zip(names, (np.array(value) for value in compiled(dict(item)).to_tuple()), strict=True)) for item in inputs
    ]


def folded(model: Any) -> Any:
    """Return a model whose weights are constants: reshaped constants would stay floats in quantised layers.

    Depthwise convolutions of ONNX models have reshaped weights.
    """
    from openvino.passes import ConstantFolding, Manager

    folded = model.clone()
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(folded)
    return folded


def _attempts(
    openvino: Any, nncf: Any, model: Any, calibration: Sequence[Arrays], *, transformer: bool
) -> list[Attempt]:
    quantised: dict[str, Any] = {}

    def attempt(title: str, preset: Any, *, floats: Sequence[str] = (), dtype: str | None = None) -> Attempt:
        key = f"{preset} {floats}"

        def make(path: Path) -> None:
            if key not in quantised:
                quantised[key] = nncf.quantize(
                    model.clone(),
                    nncf.Dataset(list(calibration), dict),
                    preset=preset,
                    target_device=nncf.TargetDevice.CPU,
                    subset_size=len(calibration),
                    model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                    ignored_scope=nncf.IgnoredScope(names=list(floats)),
                    advanced_parameters=nncf.AdvancedQuantizationParameters(
                        # AVX2 and AVX-512 without VNNI or AMX add in 16 bits, which saturate if weights have 8 bits.
                        overflow_fix=nncf.OverflowFix.DISABLE if processor.needs("int8") else nncf.OverflowFix.ENABLE,
                    ),
                )
            openvino.save_model(quantised[key], path, compress_to_fp16=False)

        return Attempt(title, make, dtype)

    presets = nncf.QuantizationPreset
    half = "bfloat16" if processor.needs("bfloat16") else None
    if transformer:
        # With the other layers in bfloat16, the answers of transformers are far off.
        return [attempt("performance preset", presets.PERFORMANCE), _weights_alone(openvino, nncf, model, half)]
    edges = sensitive(model)
    candidates = [
        attempt("performance preset", presets.PERFORMANCE),
        attempt("mixed preset", presets.MIXED),
        attempt(f"mixed preset, {len(edges)} layers in float32", presets.MIXED, floats=edges),
    ]
    if half:
        candidates.insert(0, attempt("performance preset, the rest in bfloat16", presets.PERFORMANCE, dtype=half))
    return candidates


def _weights_alone(openvino: Any, nncf: Any, model: Any, dtype: str | None) -> Attempt:
    """Return the attempt with int8 weights that computes in floats: a quarter of the size, and hardly faster."""

    def make(path: Path) -> None:
        compressed = nncf.compress_weights(model.clone(), mode=nncf.CompressWeightsMode.INT8_ASYM)
        openvino.save_model(compressed, path, compress_to_fp16=False)

    return Attempt("int8 weights alone", make, dtype)


def sensitive(model: Any) -> list[str]:
    """Return the layers to which int8 does most harm for least gain: the first, the last, depthwise convolutions."""
    weighted = [node for node in model.get_ordered_ops() if node.get_type_name() in _WEIGHTED]
    edges = {weighted[0].get_friendly_name(), weighted[-1].get_friendly_name()}
    depthwise = (node.get_friendly_name() for node in weighted if node.get_type_name() == "GroupConvolution")
    return sorted({*edges, *depthwise})
