"""A process that converts a TensorFlow model to one of OpenVINO: ``python -m torchmar.conversion.tensorflow_model``.

It uses OpenVINO, which reads SavedModels and TensorFlow Lite models without TensorFlow. Answers are compared with
TensorFlow's if it is installed, otherwise with those of the model as OpenVINO reads it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchmar.conversion import tflite_signature
from torchmar.conversion.process import Rejected, fitted, gap, main, sample_arrays

# OpenVINO sends statistics about its use with this package; None in sys.modules prevents its import.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

TOLERANCE = 1e-4  # relative to the largest output, or to 1
QUANTISED_TOLERANCE = 3e-2  # the same for models whose layers round
_VERSION = openvino.__version__.partition("-")[0]
_BATCHES = (1, 3)  # numbers of rows of the random inputs, if the model accepts any number
_SIZES = (12, 64, 224)  # sizes of any other free dimension; the first one that the model accepts is used
_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
_REMEDY = "write a handler that runs TensorFlow, with the folder under files:, and tensorflow in the requirements"
_STRINGS = (
    "export a signature that takes numbers: decode images and parse tf.Example messages before the request, or in the "
    "preprocess of a handler of your own"
)

Arrays = dict[str, np.ndarray]
"""Inputs or outputs, by name."""


@dataclass(frozen=True)
class Input:
    """An input of the model; None in its shape is any size."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


def convert(job: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a model and compare the answers.

    Args:
        job: ``source`` and ``target`` (paths), ``channels_first``, ``drop_activations``, and ``samples``: JSON values,
            or ``{"npy": base64}``.

    Returns:
        ``difference`` (the largest), ``random`` and ``samples`` (numbers of comparisons) and ``notes``.

    Raises:
        Rejected: the model cannot be converted.
    """
    source, target = Path(job["source"]), Path(job["target"])
    core = openvino.Core()
    model = _read(core, source)
    _name_ports(model, source)
    inputs = [_input(port) for port in model.inputs]
    compared = _answered(core, model, [*_random(core, model, inputs), *_samples(job["samples"], inputs)])
    if not compared:
        raise Rejected("OpenVINO reads it, and cannot run it on random inputs", _REMEDY)
    inputs_by_kind = [(arrays, kind) for arrays, _, kind in compared]
    reference, by = _of_tensorflow(source, [arrays for arrays, _ in inputs_by_kind])
    expected = reference or [answers for _, answers, _ in compared]
    notes = [by if reference else f"not compared with TensorFlow ({by})"]
    quantised = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    channels_first = bool(job["channels_first"]) and _is_of_images(inputs)
    dropped = _drop_activation(model, job["drop_activations"])
    if channels_first:
        model = _with_channels_first(model)
        notes.append("channels first, as the handler has images")
    if dropped:
        notes.append(f"without its last {dropped}, which the handler computes")
    if quantised:
        notes.append("quantised: OpenVINO rounds in other places than TensorFlow Lite")
    if inputs[0].shape[:1] not in ((), (None,)):
        notes.append(f"for {inputs[0].shape[0]} rows at a time" if inputs[0].shape[0] != 1 else "for one row at a time")
    openvino.save_model(model, target, compress_to_fp16=False)
    difference = _difference(core, target, inputs_by_kind, expected, channels_first, dropped)
    tolerance = QUANTISED_TOLERANCE if quantised else TOLERANCE
    if not difference <= tolerance:  # also if it is NaN
        raise Rejected(f"the converted model answers differently: by {difference:.1e}, more than {tolerance}", _REMEDY)
    kinds = [kind for _, kind in inputs_by_kind]
    counts = {kind: kinds.count(kind) for kind in ("random", "samples")}
    return {"difference": difference, **counts, "notes": notes}


def _read(core: Any, source: Path) -> Any:
    try:
        model = core.read_model(source)
    except Exception as error:  # RuntimeError, and exceptions of its readers
        raise _not_read(error) from error
    for port in model.inputs:
        if port.element_type == openvino.Type.string:
            raise Rejected(f"its input {_name(port)!r} is of strings, which OpenVINO does not compute with", _STRINGS)
    return model


def _not_read(error: Exception) -> Rejected:
    """Return the reason why a model cannot be read, with the unsupported operations."""
    text = str(error)
    stopped = re.findall(r"No conversion rule found for operations?: *(.+)", text)
    stopped += re.findall(r"Conversion is failed for: *(.+)", text)
    if stopped:
        operations = ", ".join(dict.fromkeys(name.strip() for part in stopped for name in part.split(",")))
        strings = re.search(r"ParseExample|DecodeRaw|DecodeJpeg|DecodePng|DecodeImage|DecodeBase64|String", operations)
        return Rejected(
            f"OpenVINO {_VERSION} has no conversion for its operations {operations}",
            _STRINGS if strings else f"export the model without them, or {_REMEDY}",
        )
    lines = [line.strip() for line in text.splitlines()]
    messages = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return Rejected(f"OpenVINO {_VERSION} cannot read it: {' '.join(messages or lines)[:300]}", _REMEDY)


def _name_ports(model: Any, source: Path) -> None:
    """Give inputs and outputs the names of the signature, because clients of TensorFlow Serving use these."""
    signature_names = {} if source.is_dir() else tflite_signature.names(source)
    for ports, kind in ((model.inputs, "input"), (model.outputs, "output")):
        names = [signature_names.get(_name(port)) or _plain(_name(port)) for port in ports]
        if len(set(names)) < len(names) or not all(names):
            names = [f"{kind}_{place}" for place in range(len(names))]
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})


def _name(port: Any) -> str:
    return min(port.get_names(), key=lambda name: (len(name), name), default="")


def _plain(name: str) -> str:
    """Return the name of a tensor in the signature, without TensorFlow's additions."""
    return re.sub(r":\d+$", "", name).removeprefix("serving_default_")


def _input(port: Any) -> Input:
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        raise Rejected(f"its input {_name(port)!r} has no shape", "give the input of the signature a tf.TensorSpec")
    sizes = tuple(None if size.is_dynamic else size.get_length() for size in shape)
    return Input(_name(port), sizes, np.dtype(port.element_type.to_dtype()))


def _is_of_images(inputs: Sequence[Input]) -> bool:
    """Return whether the channels of an image have to be moved; reject inputs that a handler of images cannot serve."""
    shape = inputs[0].shape
    images = len(inputs) == 1 and len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)
    if images and inputs[0].dtype.kind != "f":
        raise Rejected(
            f"its input {inputs[0].name!r} takes {inputs[0].dtype}, and handlers of images compute with floats",
            "convert the model with an input of floats (inference_input_type = tf.float32), or use "
            "torchmar_handlers.tensors, which takes the bytes",
        )
    return images


def _with_channels_first(model: Any) -> Any:
    processor = openvino.preprocess.PrePostProcessor(model)
    processor.input(0).tensor().set_layout(openvino.Layout("NCHW"))
    processor.input(0).model().set_layout(openvino.Layout("NHWC"))
    return processor.build()


def _drop_activation(model: Any, drop: Sequence[str]) -> str:
    """Remove an activation at the end that the handler computes itself; return its name, or an empty text.

    With ``softmax`` and ``sigmoid``, sigmoid means one with a single output.
    """
    if not drop or len(model.outputs) != 1:
        return ""
    result, name = model.get_results()[0], _name(model.outputs[0])
    node = result.input_value(0).get_node()
    while node.get_type_name() in ("FakeQuantize", "Convert"):  # around the activation of a quantised model
        node = node.input_value(0).get_node()
    activation = {"SoftMax": "softmax", "Softmax": "softmax", "Sigmoid": "sigmoid"}.get(node.get_type_name(), "")
    width = node.get_output_partial_shape(0)[-1] if activation else None
    if activation not in drop or (activation == "sigmoid" and len(drop) > 1 and str(width) != "1"):
        return ""
    result.input(0).replace_source_output(node.input_value(0))
    model.validate_nodes_and_infer_types()
    model.outputs[0].get_tensor().set_names({name})
    return activation


def _random(core: Any, model: Any, inputs: Sequence[Input]) -> list[tuple[Arrays, str]]:
    """Return random inputs that the model accepts: floats from 0 to 1 and wider ones, integers of the smallest kind."""
    request = core.compile_model(model, "CPU", _SETTINGS).create_infer_request()
    for size in _SIZES:
        batches = [({spec.name: _example(spec, rows, size) for spec in inputs}, "random") for rows in _BATCHES]
        try:
            for arrays, _ in batches:
                request.infer(arrays)
        except RuntimeError:
            continue
        return batches
    return []


def _example(spec: Input, rows: int, size: int) -> np.ndarray:
    generator = np.random.default_rng(rows)
    shape = [fixed if fixed is not None else size if place else rows for place, fixed in enumerate(spec.shape)]
    if spec.dtype.kind == "f":
        wide = 6.0 if rows == _BATCHES[-1] else 1.0
        return (generator.random(shape) * wide).astype(spec.dtype)
    limit = 256 if spec.dtype == np.uint8 else 2
    return generator.integers(0, limit, shape).astype(spec.dtype)


def _samples(samples: Sequence[Any], inputs: Sequence[Input]) -> Iterator[tuple[Arrays, str]]:
    """Yield the samples that are tensors of the model's shapes; others have to be decoded by the handler."""
    for sample in samples:
        try:
            arrays = sample_arrays(sample, [spec.name for spec in inputs])
            pairs = zip(inputs, arrays, strict=True)
            yield {spec.name: fitted(array, spec.shape).astype(spec.dtype) for spec, array in pairs}, "samples"
        except (ValueError, TypeError, KeyError, IndexError):
            continue


def _answered(core: Any, model: Any, batches: Sequence[tuple[Arrays, str]]) -> list[tuple[Arrays, Arrays, str]]:
    """Return inputs with the answers of the model as it was read; samples that it does not accept are left out."""
    request = core.compile_model(model, "CPU", _SETTINGS).create_infer_request()
    answered = []
    for arrays, kind in batches:
        try:
            answered.append((arrays, _outputs(request, arrays), kind))
        except RuntimeError:
            continue
    return answered


def _outputs(request: Any, arrays: Arrays) -> Arrays:
    request.reset_state()
    answer = request.infer(arrays)
    return {_name(port): np.array(value) for port, value in answer.items()}


def _of_tensorflow(source: Path, batches: Sequence[Arrays]) -> tuple[list[Arrays], str]:
    """Return TensorFlow's own answers and its version; or no answers and the reason."""
    with tempfile.TemporaryDirectory() as name:
        file, answers = Path(name, "inputs.npz"), Path(name, "answers.npz")
        arrays: Any = {f"{place}/{key}": value for place, batch in enumerate(batches) for key, value in batch.items()}
        np.savez(file, **arrays)
        script = Path(__file__).with_name("tensorflow_answers.py")
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        command = [sys.executable, *map(str, (script, source, file, answers))]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        lines = process.stdout.strip().splitlines() or [f"its process ended with {process.returncode}"]
        if process.returncode:
            return [], lines[-1][:200]
        with np.load(answers) as stored:
            keys = [key.partition("/") for key in stored.files]
            return [
                {key: stored[f"{number}/{key}"] for number, _, key in keys if number == str(place)}
                for place in range(len(batches))
            ], f"compared with {lines[-1]}"


def _difference(
    core: Any,
    target: Path,
    batches: Sequence[tuple[Arrays, str]],
    expected: Sequence[Arrays],
    channels_first: bool,
    dropped: str,
) -> float:
    """Return the largest difference, relative to the largest output or 1; NaN if an output is missing."""
    request = core.compile_model(core.read_model(target), "CPU", _SETTINGS).create_infer_request()
    largest = 0.0
    for (arrays, _), outputs in zip(batches, expected, strict=True):
        if channels_first:
            arrays = {name: np.ascontiguousarray(np.moveaxis(value, -1, 1)) for name, value in arrays.items()}
        actual = _outputs(request, arrays)
        if dropped:
            actual = {name: _activated(value, dropped) for name, value in actual.items()}
        if len(outputs) == 1 == len(actual):  # the name may be TensorFlow's own, if the model has no signature
            outputs = dict(zip(actual, outputs.values(), strict=True))
        if actual.keys() != outputs.keys() or any(actual[name].shape != outputs[name].shape for name in outputs):
            return float("nan")
        largest = max([largest, *(gap(value, actual[name]) for name, value in outputs.items())])
    return largest


def _activated(value: np.ndarray, name: str) -> np.ndarray:
    if name == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-value)))
    powers = np.exp(value - value.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


if __name__ == "__main__":
    main(convert)
