"""The export to OpenVINO's intermediate representation: ``model.xml``, with the weights in ``model.bin``."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from torchmar.conversion.exporters import failure
from torchmar.conversion.exporters.model import Axes, Example, Model, call, in_float32, input_names, output_names
from torchmar.conversion.exporters.program import export_program
from torchmar.conversion.process import Inapplicable


def to_openvino(
    model: Model,
    example: Example,
    dynamic: Axes,
    path: Path,
    *,
    names: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> list[str]:
    """Write a model of OpenVINO, with float32 weights.

    Args:
        model: eager, TorchScript, a program, or the file of an ONNX model.
        example: inputs of an example.
        dynamic: the names of the dimensions of any size; OpenVINO keeps no names.
        path: path of the ``.xml`` file.
        names: names of the inputs; default: those of the model.
        outputs: names of the outputs; default: those of the model.

    Returns:
        Notes about the model.

    Raises:
        Rejected: the model cannot be converted, or OpenVINO is missing.
    """
    if importlib.util.find_spec("openvino") is None:
        raise Inapplicable("OpenVINO is not installed here", "pip install 'torchmar[export]'")
    # The handlers' function imports OpenVINO without the package that sends statistics.
    openvino = importlib.import_module("torchmar_handlers.weights.openvino_ir").imported()
    notes = []
    if isinstance(model, Path):
        converted = _read(openvino, model)
    else:
        model, example, from_bfloat16 = in_float32(model, example)
        if from_bfloat16:
            notes.append("float32 weights, in place of bfloat16; the option dtype: bfloat16 computes with it")
        program = export_program(model, example, dynamic)
        converted = _converted(openvino, program)
        _name(converted.inputs, list(names) or input_names(model, len(example)))
        _name(converted.outputs, list(outputs) or output_names(call(model, example)))
    openvino.save_model(converted, path, compress_to_fp16=False)
    return [*notes, f"OpenVINO {openvino.__version__.partition('-')[0]}"]


def _read(openvino: Any, source: Path) -> Any:
    try:
        return openvino.Core().read_model(source)
    except Exception as error:  # RuntimeError, and exceptions of its readers
        raise failure.rejection(error, "OpenVINO") from error


def _converted(openvino: Any, program: ExportedProgram) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return openvino.convert_model(program)
        except Exception as error:
            raise failure.rejection(error, "OpenVINO", program) from error


def _name(ports: Sequence[Any], names: Sequence[str]) -> None:
    if len(ports) == len(names):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
