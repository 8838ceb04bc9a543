"""A model to export: its kind, its names, and the dimensions of any size of its inputs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

Model = nn.Module | ExportedProgram | Path
"""An eager model, TorchScript, a program of torch.export, or the file of an ONNX model."""

Example = tuple[torch.Tensor, ...]
"""The inputs of one call, by position."""

Axes = Sequence[Mapping[int, str]]
"""The names of the dimensions of any size, by dimension, for each input; equal names mean equal sizes."""

_SIZES = (3, 2, 5, 7)  # sizes of such a dimension in a trace: 0 and 1 would become constants


def input_names(model: Model, count: int) -> list[str]:
    """Return the names of a model's first inputs; numbered names if it has none."""
    names: list[str] = []
    if isinstance(model, ExportedProgram):
        signature = model.module_call_graph[0].signature
        args, kwargs = pytree.tree_unflatten(list(range(model.call_spec.in_spec.num_leaves)), model.call_spec.in_spec)
        names = [*(signature.forward_arg_names or ())][: len(args)] if signature else []
        names = [*names, *kwargs] if len(names) == len(args) else list(model.graph_signature.user_inputs)
    elif isinstance(model, torch.jit.ScriptModule):
        schema: Any = model.forward.schema  # type: ignore[attr-defined]
        names = [argument.name for argument in schema.arguments[1:]]
    elif isinstance(model, nn.Module):
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(model.forward).parameters.values()
        names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    return names[:count] if len(names) >= count else [f"input_{place}" for place in range(count)]


def output_names(output: Any) -> list[str]:
    """Return the names of a model's outputs: the keys of a mapping, or the names that handlers use for others."""
    count = len(tensors(output))
    if isinstance(output, Mapping) and len(output) == count:
        return [str(key) for key in output]
    return ["output"] if count == 1 else [f"output_{place}" for place in range(count)]


def tensors(output: Any) -> list[torch.Tensor]:
    """Return the tensors of an output, in order."""
    if isinstance(output, Mapping):
        output = list(output.values())  # some models return subclasses of dict that torch does not know
    return [value for value in pytree.tree_leaves(output) if isinstance(value, torch.Tensor)]


def call(model: Model, example: Example) -> Any:
    """Return the output of a model for one example, without gradients."""
    with torch.no_grad():
        if isinstance(model, ExportedProgram):  # it takes the inputs by name that were passed by name at its export
            args, kwargs = pytree.tree_unflatten(list(example), model.call_spec.in_spec)
            return model.module(check_guards=False)(*args, **kwargs)
        return model(*example)  # type: ignore[operator]


def sized(example: Example, dynamic: Axes, sizes: Mapping[str, int]) -> Example:
    """Return an example with other sizes of its named dimensions: cut off, or repeated from the start."""
    return tuple(
        _resized(tensor, {dimension: sizes[name] for dimension, name in axes.items() if name in sizes})
        for tensor, axes in zip(example, dynamic, strict=True)
    )


def traceable(example: Example, dynamic: Axes) -> Example:
    """Return an example whose named dimensions have more than one element, as a trace of any size needs."""
    sizes = {
        name: tensor.shape[dimension]
        for tensor, axes in zip(example, dynamic, strict=True)
        for dimension, name in axes.items()
    }
    used_sizes = {size for tensor in example for size in tensor.shape}
    free = iter([size for size in _SIZES if size not in used_sizes] + list(_SIZES))
    return sized(example, dynamic, {name: next(free) for name, size in sizes.items() if size < 2})


def in_float32(model: Model, example: Example) -> tuple[Model, Example, bool]:
    """Return a bfloat16 model as a float32 model with the same weights, and whether it was bfloat16."""
    if isinstance(model, Path) or torch.bfloat16 not in {tensor.dtype for tensor in _weights(model)}:
        return model, example, False
    inner = model.module(check_guards=False) if isinstance(model, ExportedProgram) else copy.deepcopy(model)
    floats = tuple(tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in example)
    return inner.float(), floats, True


def _weights(model: nn.Module | ExportedProgram) -> Iterator[torch.Tensor]:
    if isinstance(model, ExportedProgram):
        yield from model.state_dict.values()
        return
    yield from model.parameters()
    yield from model.buffers()


def _resized(tensor: torch.Tensor, sizes: Mapping[int, int]) -> torch.Tensor:
    for dimension, size in sizes.items():
        have = tensor.shape[dimension]
        if have == 0:
            tensor = tensor.new_zeros([size if place == dimension else n for place, n in enumerate(tensor.shape)])
            continue
        index = torch.arange(size, device=tensor.device) % have
        tensor = tensor.index_select(dimension, index)
    return tensor.contiguous()
