"""The export to ONNX, in the newest opset that torch can write and ONNX Runtime can read."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torchmar.conversion.exporters import failure
from torchmar.conversion.exporters.model import Axes, Example, Model, call, in_float32, input_names, output_names
from torchmar.conversion.exporters.program import export_program
from torchmar.conversion.process import Inapplicable

_OLDEST = 18  # oldest opset of torch's exporter
_WITHOUT_ATTENTION = 22  # the newest opset in which attention consists of products and a softmax
_EXTRA = "pip install 'torchmar[export]'"


def to_onnx(
    model: Model,
    example: Example,
    dynamic: Axes,
    path: Path,
    *,
    opset: int | None = None,
    names: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> list[str]:
    """Write an ONNX model, in one file up to 2 GB; the weights of a larger one are beside it, with ``.data`` appended.

    Args:
        model: eager, TorchScript or a program; the file of an ONNX model gets another opset.
        example: inputs of an example.
        dynamic: names of the dimensions of any size, which the result has.
        path: path of the ``.onnx`` file.
        opset: version of the operators; None: the newest that ONNX Runtime reads and torch writes.
        names: names of the inputs; default: those of the model.
        outputs: names of the outputs; default: those of the model.

    Returns:
        Notes about the model.

    Raises:
        Rejected: the model cannot be exported, or a package is missing.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise Inapplicable(f"ONNX needs {', '.join(missing)}, not installed here", _EXTRA)
    readable = newest_opset()
    if opset is not None and opset > readable:
        raise Inapplicable(f"opset {opset} is newer than {readable}, the newest that is written and read here")
    if isinstance(model, Path):
        return _with_opset(model, path, opset or readable)
    if opset is not None and opset < _OLDEST:
        raise Inapplicable(f"opset {opset} is older than {_OLDEST}, the oldest that torch's exporter writes")
    model, example, converted = in_float32(model, example)
    program = export_program(model, example, dynamic)
    inputs = list(names) or input_names(model, len(example))
    results = list(outputs) or output_names(call(model, example))
    exported = _exported(program, opset or readable, inputs, results, dynamic)
    if opset is None and any(_masked_attention(node) for node in exported.model.graph.all_nodes()):
        exported = _exported(program, _WITHOUT_ATTENTION, inputs, results, dynamic)
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # paths and lines of the sources
    exported.save(path)
    notes = [f"opset {exported.model.opset_imports.get('')}"]
    if converted:
        notes.append("float32, in place of bfloat16, which ONNX Runtime does not compute with on CPUs")
    return notes


def _masked_attention(node: Any) -> bool:
    """Return whether a node is an Attention with a mask: ONNX Runtime rejects some masks."""
    return node.op_type == "Attention" and len(node.inputs) > 3 and node.inputs[3] is not None


def newest_opset() -> int:
    """Return the newest opset that torch writes and ONNX Runtime reads."""
    # Since 1.29, it sends statistics about models and the machine to Microsoft, unless this is set before its import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    constants = importlib.import_module("torch.onnx._constants")
    largest = min(int(constants.ONNX_MAX_OPSET), int(onnx.defs.onnx_opset_version()))
    for opset in range(largest, _OLDEST, -1):
        try:
            runtime.InferenceSession(_smallest(onnx, opset), providers=["CPUExecutionProvider"])
        except Exception:  # its exceptions have no common base class
            continue
        return opset
    return _OLDEST


def _smallest(onnx: Any, opset: int) -> bytes:
    """Return a model in an opset that returns its input."""
    helper = onnx.helper
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = min(model.ir_version, helper.find_min_ir_version_for(model.opset_import))
    return bytes(model.SerializeToString())


def _exported(program: Any, opset: int, inputs: list[str], outputs: list[str], dynamic: Axes) -> Any:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            exported: Any = torch.onnx.export(
                program,
                (),
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=tuple(dict(axes) for axes in dynamic) if any(dynamic) else None,
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # an exception of its dispatcher, its functions or its optimiser
            raise failure.rejection(error, "ONNX", program) from error
    return exported


def _with_opset(source: Path, path: Path, opset: int) -> list[str]:
    onnx, converter = importlib.import_module("onnx"), importlib.import_module("onnx.version_converter")
    try:
        model = onnx.load(source)
        original = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        model = converter.convert_version(model, opset) if original != opset else model
        onnx.save(model, path)
    except Exception as error:
        raise failure.rejection(error, "ONNX") from error
    return [f"opset {opset}, in place of {original}"]
