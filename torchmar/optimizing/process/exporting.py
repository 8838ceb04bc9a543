"""The original weights in other formats, written by the exporters of `torchmar.conversion` for the handler's calls."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from torchmar.conversion import exporters
from torchmar.conversion.exporters.program import export_program
from torchmar.conversion.process import Rejected
from torchmar.optimizing.process.captured import Captured
from torchmar.optimizing.process.jobs import NotApplicable
from torchmar.optimizing.process.source import Source, example_of, flat, varying_sizes

_NO_CODE = {
    "ONNX": "an ONNX model has no code for it: only a model of torch can become it",
    "OPENVINO": "an OpenVINO model has no code for it: only a model of torch can become it",
    "AOTINDUCTOR": "an AOTInductor package is machine code, which nothing else can be made of",
    "LIBRARY": "a compiled library is machine code, which nothing else can be made of",
}


@dataclass(frozen=True)
class _Call:
    """A model, and the way in which it is called.

    Attributes:
        model: module of torch.
        example: example inputs, by position.
        dynamic: names of the dimensions of any size.
        names: names of the inputs, as the handler uses them.
        by_name: whether the handler passes the inputs by name.
    """

    model: nn.Module | ExportedProgram
    example: tuple[torch.Tensor, ...]
    dynamic: tuple[dict[int, str], ...]
    names: tuple[str, ...]
    by_name: bool


def torch_module(source: Source) -> nn.Module:
    """Return the module of torch that runs the model: eager, TorchScript, or the graph of an exported program.

    Raises:
        NotApplicable: the weights are in a format without code of torch.
    """
    if reason := _NO_CODE.get(source.format):
        raise NotApplicable(reason)
    module = source.module
    inner = getattr(module, "module", None)
    return inner if source.format == "EXPORTED" and isinstance(inner, nn.Module) else module


def program(source: Source, inputs: Sequence[Captured], dtype: torch.dtype | None = None) -> ExportedProgram:
    """Return the weights as a program of torch.export that takes the handler's inputs.

    Args:
        source: the weights.
        inputs: recorded inputs.
        dtype: type of the weights and of floating inputs; None: unchanged.

    Raises:
        NotApplicable: the weights are in a format without code of torch.
        Rejected: torch cannot export them.
    """
    call = _call(source, inputs, dtype)
    exported = export_program(call.model, call.example, call.dynamic)
    if not call.by_name:
        return exported
    # A package of AOTInductor only has the names of inputs that were passed by name when it was exported.
    wrapped = _Named(exported.module(check_guards=False), call.names)
    sizes = [dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in call.dynamic]
    with torch.no_grad():
        return torch.export.export(
            wrapped,
            (),
            dict(zip(call.names, call.example, strict=True)),
            dynamic_shapes={"inputs": dict(zip(call.names, sizes, strict=True))},
            strict=False,
        )


def torchscript(source: Source, inputs: Sequence[Captured], dtype: torch.dtype | None = None) -> torch.jit.ScriptModule:
    """Return the weights as TorchScript: unchanged if they are TorchScript, otherwise traced.

    Raises:
        NotApplicable: the weights are in a format without code of torch, or frozen and of another type.
        Rejected: the model cannot be traced, or a trace would depend on its example.
    """
    from torchmar_handlers.weights import torchscript as handlers_torchscript

    module = torch_module(source)
    if isinstance(module, torch.jit.ScriptModule):
        if dtype is not None and handlers_torchscript.frozen(module):
            raise NotApplicable("the TorchScript archive is frozen: its weights are constants, which are not converted")
        return module if dtype is None else module.to(dtype)
    call = _call(source, inputs, dtype)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.pt")
        try:
            exporters.to_torchscript_trace(call.model, call.example, call.dynamic, file)
        except Rejected as rejected:
            if "SymInts" in str(rejected):
                reason = "TorchScript does not trace a torch.export program that takes sizes of any length"
                raise NotApplicable(reason) from rejected
            raise
        return handlers_torchscript.load(file, source.device)


def onnx(source: Source, inputs: Sequence[Captured], file: Path) -> None:
    """Write the weights as an ONNX model, with the names of the original.

    Raises:
        NotApplicable: they are an ONNX model already, or in a format without code of torch.
        Rejected: the model cannot be exported.
    """
    if source.format == "ONNX":
        raise NotApplicable("the original is an ONNX model: this is the baseline")
    call = _call(source, inputs)
    exporters.to_onnx(
        call.model, call.example, call.dynamic, file, names=call.names, outputs=_output_names(source, inputs)
    )


def openvino(source: Source, inputs: Sequence[Captured]) -> Any:
    """Return the weights as a model of OpenVINO, with the names of the original.

    Raises:
        NotApplicable: they are in a format that OpenVINO does not read.
        Rejected: the model cannot be converted.
    """
    from torchmar_handlers.weights import openvino_ir

    core = openvino_ir.shared_core()
    if source.format == "OPENVINO":
        return core.read_model(source.path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.xml")
        if source.format == "ONNX":
            assert source.path is not None
            exporters.to_openvino(source.path, (), (), file)
        else:
            call = _call(source, inputs)
            outputs = _output_names(source, inputs)
            exporters.to_openvino(call.model, call.example, call.dynamic, file, names=call.names, outputs=outputs)
        return core.read_model(file)  # this maps the weights into memory, so that the file can be removed


def _call(source: Source, inputs: Sequence[Captured], dtype: torch.dtype | None = None) -> _Call:
    model: nn.Module | ExportedProgram = torch_module(source)
    example = example_of(source, inputs)
    free = varying_sizes(source, inputs, example)
    names = source.names_of(example)
    tensors = example.tensors or ()
    if example.kwargs:
        order = [name for name in source.input_names if name in example.kwargs]
        if tuple(order) != source.input_names[: len(example.kwargs)]:
            raise NotApplicable(f"the handler gives the model {', '.join(names)}, which are not its first inputs")
        places = [names.index(name) for name in order]
        names, tensors, free = tuple(order), tuple(tensors[at] for at in places), tuple(free[at] for at in places)
    if dtype is not None:
        model = torch_module(source).to(dtype)
        tensors = tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors)
    elif source.format == "EXPORTED":
        assert source.path is not None
        model = torch.export.load(source.path)
    return _Call(model, tensors, _axes(tensors, free), names, bool(example.kwargs))


def _axes(tensors: Sequence[torch.Tensor], free: Sequence[frozenset[int]]) -> tuple[dict[int, str], ...]:
    """Return names for dimensions of any size; sizes that are always equal, such as a text's length, share one."""
    sizes: dict[int, set[int]] = {}
    for tensor, axes in zip(tensors, free, strict=True):
        for axis in axes:
            sizes.setdefault(axis, set()).add(tensor.shape[axis])

    def name(place: int, axis: int) -> str:
        if axis == 0:
            return "batch"
        return f"size_{axis}" if len(sizes[axis]) == 1 else f"size_{axis}_of_{place}"

    return tuple({axis: name(place, axis) for axis in sorted(axes)} for place, axes in enumerate(free))


def _output_names(source: Source, inputs: Sequence[Captured]) -> list[str]:
    """Return a name for each output, as handlers name outputs of a model without names."""
    names = [name for name, _ in flat(source.call(example_of(source, inputs)))]
    if source.output_names and len(source.output_names) == len(names):
        return list(source.output_names)
    if all(name and not name.isdigit() for name in names):
        return names
    return ["output"] if len(names) == 1 else [f"output_{place}" for place in range(len(names))]


class _Named(nn.Module):
    """A module that takes arguments by name, for one that takes them by position."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, tuple(names)

    def forward(self, **inputs: torch.Tensor) -> Any:
        """Call the module."""
        return self.module(*[inputs[name] for name in self.names])
