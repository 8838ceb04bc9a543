"""Export to TorchScript: the operations of one call (trace), or the model's own code (script)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.jit._trace import TracerWarning

from torchmar.conversion.exporters import failure
from torchmar.conversion.exporters.model import Axes, Example, Model, traceable
from torchmar.conversion.exporters.program import export_program
from torchmar.conversion.process import Inapplicable, Rejected

_DEPRECATED = r"`torch\.jit\.\w+` is (deprecated|not supported)"


def to_torchscript_trace(model: Model, example: Example, dynamic: Axes, path: Path) -> list[str]:
    """Write the operations of one call.

    A trace has no branches: of an ``if`` it keeps what the example has chosen. Where torch warns of one, the model is
    also exported by torch.export, which fails if a branch depends on values, or on a size that ``dynamic`` names.

    Args:
        model: eager, or a program.
        example: its inputs.
        dynamic: the names of the dimensions of any size.
        path: of the ``.pt`` file.

    Returns:
        What to know about it.

    Raises:
        Rejected: it cannot be traced, or a trace would depend on the example.
    """
    module = _module(model)
    if isinstance(module, torch.jit.ScriptModule):
        raise Inapplicable("it is TorchScript already")
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        try:
            traced: Any = torch.jit.trace(module, traceable(example, dynamic), check_trace=False, strict=False)
        except Exception as error:
            raise failure.rejection(error, "TorchScript") from error
    notes = list(_checked(model, example, dynamic, list(_places(caught))))
    _save(traced, path)
    return notes


def to_torchscript_script(model: Model, example: Example, dynamic: Axes, path: Path) -> list[str]:
    """Write the code of a model, with its branches and loops; arguments as those of `to_torchscript_trace`."""
    module = _module(model)
    if isinstance(module, torch.jit.ScriptModule):
        raise Inapplicable("it is TorchScript already")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scripted: Any = torch.jit.script(module)
        except Exception as error:
            raise failure.rejection(
                error, "TorchScript", hint="TorchScript compiles a part of Python; the other formats trace the model"
            ) from error
    _save(scripted, path)
    return []


def _module(model: Model) -> nn.Module:
    if isinstance(model, ExportedProgram):
        return model.module(check_guards=False)
    if isinstance(model, Path):
        raise Rejected("it is an ONNX model, which torch does not run", "export the model that it was made of")
    return model


def _save(module: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_DEPRECATED)
        torch.jit.save(module, path)


def _places(caught: list[warnings.WarningMessage]) -> Iterator[str]:
    """Yield what a tracer warned of, and where."""
    for warning in caught:
        if issubclass(warning.category, TracerWarning):
            what = re.split(r"[.:] ", str(warning.message))[0]
            yield f"{what} at {failure._shown(warning.filename, warning.lineno)}"


def _checked(model: Model, example: Example, dynamic: Axes, places: list[str]) -> Iterator[str]:
    """Yield a note if torch.export shows that no warning of the tracer counts.

    Raises:
        Rejected: one of them does.
    """
    if not places:
        return
    hint = "torchscript-script keeps the code; torch.where and torch.cond keep both branches of an if"
    try:
        export_program(model, example, dynamic)
    except Rejected as rejected:
        raise Rejected(f"a trace would depend on its example ({places[0]}): {rejected}", hint) from None
    yield f"the tracer warned ({places[0]}); torch.export found no branch that depends on values or on these dimensions"
