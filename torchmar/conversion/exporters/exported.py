"""The export to a program of torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torchmar.conversion.exporters.model import Axes, Example, Model
from torchmar.conversion.exporters.program import export_program


def to_export(model: Model, example: Example, dynamic: Axes, path: Path) -> list[str]:
    """Write the program of a model.

    Args:
        model: an eager model or TorchScript.
        example: inputs of an example.
        dynamic: names of the dimensions of any size.
        path: path of the ``.pt2`` file.

    Returns:
        Notes about the program.

    Raises:
        Rejected: the model cannot be exported.
    """
    save(export_program(model, example, dynamic), path)
    return []


def save(program: ExportedProgram, path: Path) -> None:
    """Write a program without paths and lines of sources, which differ between machines."""
    for node in program.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    # Without examples, torch loads a program with checks of sizes that take longer than a small model. Of the examples,
    # which are a zero each, only the tree matters.
    positional, named = program.example_inputs

    def zeros(value: Any) -> Any:
        return torch.zeros((), dtype=value.dtype).expand(value.shape) if isinstance(value, torch.Tensor) else value

    program._example_inputs = (pytree.tree_map(zeros, positional), pytree.tree_map(zeros, named))
    torch.export.save(program, path)
