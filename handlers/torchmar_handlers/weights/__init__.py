"""Weights in all formats of torch, ONNX and OpenVINO, loaded as one kind of module on the worker's device.

`load` replaces TorchServe's own ``BaseHandler.initialize``. It returns a module that is called with tensors, by
position or by name. The other functions return the names of a module's inputs, its fixed batch size, and
whether it has gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchmar_handlers.weights import aotinductor, exported, onnx_runtime, openvino_ir, state_dict, torchscript
from torchmar_handlers.weights.exported_model import ExportedModel, Input
from torchmar_handlers.weights.formats import Format, identify
from torchmar_handlers.weights.load_error import LoadError
from torchmar_handlers.weights.optimizations import CompiledModule, Optimizations, dtype

__all__ = [
    "Input",
    "LoadError",
    "differentiable",
    "dtype",
    "fixed_rows",
    "input_names",
    "inputs",
    "load",
    "output_names",
]


def load(
    folder: Path,
    serialized_file: str | None,
    model_file: str | None,
    device: torch.device,
    options: Mapping[str, Any],
    *,
    threads: int,
    pt2: Any = None,
) -> nn.Module:
    """Return an archive's model on ``device``, in eval mode and without gradients of its weights.

    ======================= ====================== ====================================================
    option                  default                meaning
    ======================= ====================== ====================================================
    dtype                   as stored              float32, float16 or bfloat16: convert the weights; of
                                                   OpenVINO: compute with it, default float32
    channels_last           false                  lay out the weights of convolutions so
    freeze                  false                  torch.jit.freeze, of TorchScript
    optimize_for_inference  false                  torch.jit.optimize_for_inference, of TorchScript
    compile                 false                  true, or a mapping with any of ``backend``, ``mode``,
                                                   ``dynamic`` and ``fullgraph``: torch.compile
    providers               those of the device    execution providers of ONNX Runtime
    ======================= ====================== ====================================================

    Faster weights beside these, for machines with certain features, are the subject of
    `torchmar_handlers.weights.optimized`.

    Args:
        folder: folder of the extracted archive, the first entry of ``sys.path``.
        serialized_file: the weights, in ``folder``; identified by their content.
        model_file: the Python file with the class of the model, in ``folder``.
        device: device of the worker.
        options: the ``handler`` section of the configuration; keys that are not in the table are ignored.
        threads: threads of one operator in ONNX Runtime and OpenVINO; other formats use those of torch.
        pt2: section ``pt2``, as TorchServe's base handler reads it; ``compile`` has precedence.

    Raises:
        LoadError: the weights, the model file or an option cannot be used; the message has the remedy.
        ImportError: and all other errors that the model file itself raises.
    """
    tuning = Optimizations.of(options, pt2)
    path = folder / serialized_file if serialized_file else None
    if path is None:
        if not model_file:
            raise LoadError("MANIFEST.json names neither a serializedFile nor a modelFile: there is no model to load")
        model, kind = state_dict.instance(folder, model_file), "an eager model"
    else:
        form = identify(path)
        kind = form.value
        if form.needs_model_file and not model_file:
            raise LoadError(
                f"{path.name} is {kind}: it has tensors and no code; name the Python file with the class of the model "
                "as model file, or export the model (torch.export, ONNX, TorchScript)"
            )
        if model_file and not form.needs_model_file:
            raise LoadError(f"{path.name} is {kind}, which has its code in it: leave the model file {model_file} out")
        if form is Format.LIBRARY and not _aot_compiled(pt2):
            raise LoadError(
                f"{path.name} is {kind}: set `pt2: {{export: {{aot_compile: true}}}}` in model-config.yaml if "
                "torch._export.aot_compile made it; torch._inductor.aoti_compile_and_package makes .pt2 files of today"
            )
        model = _loaded(form, path, folder, model_file or "", device, threads, tuning)
    if not isinstance(model, ExportedModel):
        model = model.to(device).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    return tuning.apply(model, path, kind)


def differentiable(model: nn.Module) -> bool:
    """Return whether gradients with respect to inputs are available; ONNX, OpenVINO and AOTInductor have none."""
    model = _inner(model)
    if isinstance(model, ExportedModel):
        return model.differentiable
    return torchscript.differentiable(model) if isinstance(model, torch.jit.ScriptModule) else True


def inputs(model: nn.Module) -> tuple[Input, ...]:
    """Return the inputs of a module, in the order of positions: names, types and shapes if they are known."""
    model = _inner(model)
    return model.inputs if isinstance(model, ExportedModel) else tuple(map(Input, input_names(model)))


def input_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's tensor inputs, in the order of positions; empty: unknown."""
    model = _inner(model)
    if isinstance(model, ExportedModel):
        return model.input_names
    if isinstance(model, torch.jit.ScriptModule):
        schema: Any = model.forward.schema  # type: ignore[attr-defined]
        return tuple(argument.name for argument in schema.arguments[1:])
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(
        parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY)
        for parameter in parameters
    ):
        return ()
    return tuple(parameter.name for parameter in parameters)


def output_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's outputs; empty: unknown."""
    model = _inner(model)
    return model.output_names if isinstance(model, ExportedModel) else ()


def fixed_rows(model: nn.Module) -> int | None:
    """Return the only batch size that a module accepts, for the caller to split and pad; None: any size."""
    model = _inner(model)
    return model.fixed_rows if isinstance(model, ExportedModel) else None


def _inner(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, CompiledModule) else model


def _loaded(
    form: Format,
    path: Path,
    folder: Path,
    model_file: str,
    device: torch.device,
    threads: int,
    tuning: Optimizations,
) -> nn.Module:
    def model() -> nn.Module:
        return state_dict.instance(folder, model_file)

    loaders: dict[Format, Callable[[], nn.Module]] = {
        Format.TORCHSCRIPT: lambda: torchscript.load(path, device),
        Format.EXPORTED: lambda: exported.load(path, device),
        Format.AOTINDUCTOR: lambda: aotinductor.load(path, device),
        Format.LIBRARY: lambda: aotinductor.load_library(path, device),
        Format.ONNX: lambda: onnx_runtime.load(path, device, threads, tuning.providers),
        Format.OPENVINO: lambda: openvino_ir.load(path, device, threads, tuning.dtype),
        Format.SAFETENSORS: lambda: state_dict.load_safetensors(path, model()),
        Format.SHARDED: lambda: state_dict.load_sharded(path, model()),
        Format.SAVED: lambda: state_dict.load_saved(path, model(), mapped=True),
        Format.LEGACY: lambda: state_dict.load_saved(path, model(), mapped=False),
    }
    return loaders[form]()


def _aot_compiled(pt2: Any) -> bool:
    """Return whether the section ``pt2`` requests ``torch._export.aot_load``, by the key that TorchServe reads."""
    export = pt2.get("export") if isinstance(pt2, Mapping) else None
    return isinstance(export, Mapping) and export.get("aot_compile") is True
