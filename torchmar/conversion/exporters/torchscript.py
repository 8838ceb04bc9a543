"""The export to TorchScript: the operations of one call (trace), or the model's own code (script)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torchmar.conversion.exporters import failure
from torchmar.conversion.exporters.model import Axes, Example, Model, input_names, traceable
from torchmar.conversion.exporters.program import DependsOnValuesError, export_program
from torchmar.conversion.exporters.tracing import trace
from torchmar.conversion.process import Inapplicable, Rejected

_DEPRECATED = r"`torch\.jit\.\w+` is (deprecated|not supported)"


def to_torchscript_trace(model: Model, example: Example, dynamic: Axes, path: Path) -> list[str]:
    """Write the operations of one call.

    A trace has no branches: for an ``if``, it contains only the branch of the example. If torch warns about that, the
    model is also exported by torch.export, which fails if a branch depends on values, or on a size in ``dynamic``. A
    program has no branches, so that its trace is equal to its code.

    Args:
        model: an eager model or a program.
        example: inputs of an example.
        dynamic: names of the dimensions of any size.
        path: path of the ``.pt`` file.

    Returns:
        Notes about the model.

    Raises:
        Rejected: the model cannot be traced, or a trace would depend on the example.
    """
    if isinstance(model, ExportedProgram):
        return to_torchscript_script(model, example, dynamic, path)
    module = _module(model)
    try:
        traced, places = trace(module, traceable(example, dynamic))
    except Exception as error:
        raise failure.rejection(error, "TorchScript") from error
    notes = list(_checked(model, example, dynamic, places))
    _save(traced, path)
    return notes


def to_torchscript_script(model: Model, example: Example, dynamic: Axes, path: Path) -> list[str]:
    """Write the code of a model, with its branches and loops; the arguments are those of `to_torchscript_trace`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = _graph(model) if isinstance(model, ExportedProgram) else _module(model)
        try:
            scripted: Any = torch.jit.script(module)
        except Exception as error:
            raise failure.rejection(
                error, "TorchScript", hint="TorchScript compiles a part of Python; the other formats trace the model"
            ) from error
    _save(scripted, path)
    return []


def _module(model: nn.Module | Path) -> nn.Module:
    if isinstance(model, torch.jit.ScriptModule):
        raise Inapplicable("it is TorchScript already")
    if isinstance(model, Path):
        raise Rejected("it is an ONNX model, which torch does not run", "export the model that it was made of")
    return model


def _graph(program: ExportedProgram) -> nn.Module:
    """Return the graph of a program for TorchScript's compiler: operators without overloads, sizes as methods."""
    module: Any = program.module(check_guards=False)
    graph = module.graph
    graph.set_codegen(torch.fx.graph.CodeGen())
    names = input_names(program, len(graph.find_nodes(op="placeholder")))
    for node, name in zip(graph.find_nodes(op="placeholder"), names, strict=True):
        node.target = name
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if str(node.target).startswith("aten._assert_"):
            graph.erase_node(node)
        elif str(node.target) == "aten.sym_size.int":
            node.op, node.target = "call_method", "size"
        else:
            node.target = node.target.overloadpacket
    output = graph.output_node()
    returned = pytree.tree_unflatten(list(output.args[0]), program.call_spec.out_spec)
    output.args = (dict(returned) if isinstance(returned, Mapping) else returned,)
    graph.eliminate_dead_code()
    return torch.fx.GraphModule(module, graph)


def _save(module: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_DEPRECATED)
        torch.jit.save(module, path)


def _checked(model: Model, example: Example, dynamic: Axes, places: list[str]) -> Iterator[str]:
    """Yield a note if torch.export shows that the tracer's warnings do not matter.

    Raises:
        Rejected: one of the warnings matters.
    """
    if not places:
        return
    hint = "torchscript-script keeps the code; torch.where and torch.cond keep both branches of an if"
    try:
        export_program(model, example, dynamic)
    except DependsOnValuesError:
        raise Rejected(f"a trace would depend on its example: {places[0]}", hint) from None
    except Rejected as rejected:
        detail = "" if places[0] in str(rejected) else f"; {rejected}"
        raise Rejected(f"a trace would depend on its example: {places[0]}{detail}", hint) from None
    yield f"the tracer warned ({places[0]}); torch.export found no branch that depends on values or on these dimensions"
