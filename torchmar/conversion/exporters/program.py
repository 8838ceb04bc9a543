"""A model as a program of torch.export, with named dimensions of any size."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes

from torchmar.conversion.exporters import failure
from torchmar.conversion.exporters.model import Axes, Example, Model, input_names, traceable
from torchmar.conversion.exporters.tracing import trace
from torchmar.conversion.process import Rejected

_ROUNDS = 4  # number of torch's suggestions about sizes that are applied in turn
_LARGEST = 2**31  # larger sizes mean that there is no bound
_DATA = "GuardOnDataDependent"


class DependsOnValuesError(Rejected):
    """The computation of a model depends on the values of its input."""


def export_program(model: Model, example: Example, dynamic: Axes) -> ExportedProgram:
    """Return the program of a model.

    Args:
        model: an eager model or TorchScript; a program is returned unchanged.
        example: inputs of an example.
        dynamic: names of the dimensions of any size. The bounds of these dimensions are found, see `bounds`.

    Raises:
        Rejected: torch cannot trace the model, or a dimension of ``dynamic`` can only have one size.
    """
    if isinstance(model, ExportedProgram):
        return model
    if not isinstance(model, nn.Module):
        raise Rejected("it is an ONNX model, which torch does not run", "export the model that it was made of")
    example = traceable(example, dynamic)
    if isinstance(model, torch.jit.ScriptModule):
        names = input_names(model, len(example))
        return _traced(_named(_of_torchscript(model, example).module(check_guards=False), names), example, dynamic)
    return _traced(model, example, dynamic)


def bounds(program: ExportedProgram, dynamic: Axes) -> dict[str, tuple[int, int | None, int]]:
    """Return for each named dimension the smallest and the largest size, and the number that sizes are multiples of."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    limits: dict[str, tuple[int, int | None, int]] = {}
    for leaf, axes in zip(program.graph_signature.user_inputs, dynamic, strict=False):
        value: Any = values.get(str(leaf))
        for dimension, name in axes.items() if isinstance(value, torch.Tensor) else ():
            size: Any = value.shape[dimension]
            if isinstance(size, int):
                limits[name] = (size, size, 1)
                continue
            expression = size.node.expr
            factor = int(expression.as_coeff_Mul()[0]) if expression.is_Mul else 1
            symbol = next(iter(expression.free_symbols))
            constraint = program.range_constraints.get(symbol)
            # For dimensions of any size torch reports 2, but they also accept 1: a trace with 0 or 1 would make it a
            # constant.
            low = int(constraint.lower) if constraint is not None and constraint.lower > 2 else 1
            high = int(constraint.upper) if constraint is not None and constraint.upper < _LARGEST else None
            limits[name] = (low * factor, None if high is None else high * factor, factor)
    return limits


def _traced(model: nn.Module, example: Example, dynamic: Axes) -> ExportedProgram:
    dimensions = {name: Dim(name) for axes in dynamic for name in axes.values()}
    shapes = _shapes(model, dynamic, dimensions) if dimensions else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for _ in range(_ROUNDS):
            try:
                return torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
            except Exception as error:  # any exception of the model or torch
                if "Suggested fixes:" in str(error):
                    shapes = _followed(error, shapes, model, example)
                elif "Constraints violated" in str(error) or "Cannot create Dim" in str(error):
                    return _with_guards(model, example, dynamic, error)
                else:
                    raise _untraceable(error) from error
    raise Rejected("its dimensions of any size depend on each other in a way that torch.export cannot express")


def _with_guards(model: nn.Module, example: Example, dynamic: Axes, error: Exception) -> ExportedProgram:
    """Trace with dimensions whose bounds torch cannot express, such as "not 3", and with checks at run time.

    Raises:
        Rejected: torch has fixed one of the dimensions.
    """
    automatic = dict.fromkeys({name for axes in dynamic for name in axes.values()}, Dim.AUTO)
    try:
        program = torch.export.export(model, example, dynamic_shapes=_shapes(model, dynamic, automatic), strict=False)
    except Exception as unknown:  # any exception of the model or torch
        raise _untraceable(unknown) from unknown
    if any(low == high for low, high, _ in bounds(program, dynamic).values()):
        raise _untraceable(error) from error
    return program


def _shapes(model: nn.Module, dynamic: Axes, dimensions: Mapping[str, Any]) -> Any:
    """Return the value for the argument ``dynamic_shapes`` of torch.export."""
    shapes = tuple({place: dimensions[name] for place, name in axes.items()} or None for axes in dynamic)
    parameters = list(inspect.signature(model.forward).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return {parameters[0].name: shapes}
    return shapes


def _named(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return a module with names for its inputs, which a program keeps and uses in its checks of sizes."""
    listed = ", ".join(names)
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {listed}):\n    return self.model({listed})\n", scope)
    module: nn.Module = type("Named", (nn.Module,), {"forward": scope["forward"]})()
    module.model = model
    return module


def _followed(error: Exception, shapes: Any, model: nn.Module, example: Example) -> Any:
    """Return the dimensions that torch suggests.

    Raises:
        Rejected: one of the dimensions is a constant in the model.
    """
    text = str(error)
    # Torch's function does not accept the text after the suggestions, which torch itself adds.
    fixes = "\n".join(line for line in text.partition("Suggested fixes:")[2].splitlines() if " = " in line)
    for name, size in re.findall(r"^\s*(\w+) = (\d+)\s*$", fixes, re.MULTILINE):
        raise Rejected(
            f"the dimension {name} cannot be of any size: the model computes with the number {size} in its place"
            f"{_place_of_number(model, example)}",
            f"take it from the shape of a tensor in the model, or leave {name} out of --dynamic",
        )
    try:
        return refine_dynamic_shapes_from_suggested_fixes(f"Suggested fixes:{fixes}", shapes)
    except Exception as unknown:  # assertions, and errors of torch's parser
        raise _untraceable(error) from unknown


def _place_of_number(model: nn.Module, example: Example) -> str:
    """Return the line where a model converts a size to a number, as torch.jit's tracer finds it; empty: none."""
    try:
        _, places = trace(model, example)
    except Exception:  # any exception of the model or torch
        return ""
    return f" ({places[0]})" if places else ""


def _untraceable(error: Exception) -> Rejected:
    text = " ".join(f"{type(link).__name__} {link}" for link in failure.chain(error))
    if _DATA in text or "data-dependent" in text:
        place = failure.place_of(error)
        return DependsOnValuesError(
            f"what it computes depends on the values of its input{f', at {place}' if place else ''}: torch.export "
            "keeps one program for all values",
            "write the branch with torch.where or torch.cond; TorchScript keeps branches (--to torchscript-script)",
        )
    return failure.rejection(error, "torch.export")


def _of_torchscript(model: torch.jit.ScriptModule, example: Example) -> ExportedProgram:
    from torch._export.converter import TS2EPConverter

    logging.getLogger("torch._export.converter").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return TS2EPConverter(model, example).convert()
        except Exception as error:
            raise failure.rejection(error, "torch.export") from error
