"""The original weights in other formats: TorchScript, torch.export, ONNX and OpenVINO."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchmar.optimizing.process.captured import Captured
from torchmar.optimizing.process.jobs import NotApplicable
from torchmar.optimizing.process.source import Source, example_of, flat, varying_sizes

_NO_CODE = {
    "ONNX": "an ONNX model has no code for it: only a model of torch can become it",
    "OPENVINO": "an OpenVINO model has no code for it: only a model of torch can become it",
    "AOTINDUCTOR": "an AOTInductor package is machine code, which nothing else can be made of",
    "LIBRARY": "a compiled library is machine code, which nothing else can be made of",
}


def torch_module(source: Source) -> nn.Module:
    """Return the module of torch that runs: an eager one, TorchScript, or the graph of an exported program.

    Raises:
        NotApplicable: the weights are in a format without code of torch.
    """
    if reason := _NO_CODE.get(source.format):
        raise NotApplicable(reason)
    module = source.module
    inner = getattr(module, "module", None)
    return inner if source.format == "EXPORTED" and isinstance(inner, nn.Module) else module


def output_names(source: Source, example: Captured) -> tuple[str, ...]:
    """Return a name for each output, as handlers call those of a model that has no names."""
    names = [name for name, _ in flat(source.call(example))]
    if source.output_names and len(source.output_names) == len(names):
        return source.output_names
    if all(name and not name.isdigit() for name in names):
        return tuple(names)
    return ("output",) if len(names) == 1 else tuple(f"output_{place}" for place in range(len(names)))


def program(source: Source, inputs: Sequence[Captured], dtype: torch.dtype | None = None) -> Any:
    """Return the weights as a program of torch.export, which takes what the handler gives.

    Args:
        source: the weights.
        inputs: recorded ones.
        dtype: of the weights and floating inputs; None: as they are.

    Raises:
        NotApplicable: the weights are in a format without code of torch.
    """
    module = torch_module(source)
    example = example_of(inputs)
    free = varying_sizes(source, inputs, example)
    if dtype is not None:
        module = module.to(dtype)
        example = converted(example, dtype)
    if isinstance(module, torch.jit.ScriptModule):
        module = _of_torchscript(module, example)
    # Sizes may turn out to be tied to each other, such as the lengths of a text and of its mask.
    dims = [dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in free]
    count = len(example.args)
    by_name = dict(zip(example.kwargs, dims[count:], strict=True))
    shapes: Any = {**_by_parameter(module, dims[:count]), **by_name} if by_name else tuple(dims)
    with torch.no_grad():
        exported = torch.export.export(module, example.args, dict(example.kwargs), dynamic_shapes=shapes, strict=False)
    _check_sizes(exported, free)
    return exported


def torchscript(source: Source, inputs: Sequence[Captured], dtype: torch.dtype | None = None) -> torch.jit.ScriptModule:
    """Return the weights as TorchScript: as they are, scripted, or traced where scripting is not possible.

    Raises:
        NotApplicable: the weights are in a format without code of torch.
    """
    from torchmar_handlers.weights import torchscript as handlers_torchscript

    module = torch_module(source)
    example = example_of(inputs)
    if isinstance(module, torch.jit.ScriptModule):
        if dtype is not None and handlers_torchscript.frozen(module):
            raise NotApplicable("the TorchScript archive is frozen: its weights are constants, which are not converted")
        return module if dtype is None else module.to(dtype)
    if dtype is not None:
        module, example = module.to(dtype), converted(example, dtype)
    with handlers_torchscript.quietly(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of branches and sizes, which the gate judges
        named = {
            "example_kwarg_inputs": {**dict(zip(source.input_names, example.args, strict=False)), **example.kwargs}
        }
        arguments: Any = named if example.kwargs else {"example_inputs": example.args}
        traced: torch.jit.ScriptModule = torch.jit.trace(module, **arguments, check_trace=False, strict=False)
    return traced


def onnx(source: Source, inputs: Sequence[Captured], file: Path) -> None:
    """Write the weights as an ONNX model.

    Raises:
        NotApplicable: they are one already, or in a format without code of torch.
    """
    if source.format == "ONNX":
        raise NotApplicable("the original is an ONNX model: this is the baseline")
    example = example_of(inputs)
    names, results = source.names_of(example), output_names(source, example)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program(source, inputs),
            f=str(file),
            input_names=list(names),
            output_names=list(results),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def openvino(source: Source, inputs: Sequence[Captured]) -> Any:
    """Return the weights as a model of OpenVINO, with the names of the original.

    Raises:
        NotApplicable: they are in a format that OpenVINO does not read.
    """
    from torchmar_handlers.weights import openvino_ir

    ov = openvino_ir.imported()
    if source.format in ("ONNX", "OPENVINO"):
        model = ov.Core().read_model(source.path)
        names: Mapping[int, str] = dict(enumerate(source.input_names))
    elif source.format in _NO_CODE:
        raise NotApplicable(_NO_CODE[source.format])
    else:
        example = example_of(inputs)
        names = dict(enumerate(source.names_of(example)))
        model = ov.convert_model(program(source, inputs))
        for port, name in zip(model.outputs, output_names(source, example), strict=True):
            port.get_tensor().set_names({name})
    for place, port in enumerate(model.inputs):
        if names.get(place):
            port.get_tensor().set_names({names[place]})
    return model


def converted(example: Captured, dtype: torch.dtype) -> Captured:
    """Return an input with its floating tensors in another type."""

    def cast(value: torch.Tensor) -> torch.Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    return Captured(
        example.name, tuple(map(cast, example.args)), {name: cast(value) for name, value in example.kwargs.items()}
    )


def _by_parameter(module: nn.Module, dims: Sequence[Any]) -> dict[str, Any]:
    import inspect

    return dict(zip(inspect.signature(module.forward).parameters, dims, strict=False))


def _of_torchscript(module: torch.jit.ScriptModule, example: Captured) -> nn.Module:
    from torch._export.converter import TS2EPConverter

    converter = TS2EPConverter(module, example.args, dict(example.kwargs) or None)
    return converter.convert().module()


def _check_sizes(exported: Any, free: Sequence[frozenset[int]]) -> None:
    """Raise NotApplicable if the program has fixed a size that the model takes in any length."""
    names = exported.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    for name, axes in zip(names, free, strict=True):
        for axis in sorted(axes):
            if isinstance(values[name].shape[axis], int):
                raise NotApplicable(
                    f"torch.export has fixed size {axis} of the input {name} at {values[name].shape[axis]}, and the "
                    "model takes others"
                )
