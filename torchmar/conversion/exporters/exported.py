"""Export to a program of torch.export."""

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
        model: eager or TorchScript.
        example: its inputs.
        dynamic: the names of the dimensions of any size.
        path: of the ``.pt2`` file.

    Returns:
        What to know about it.

    Raises:
        Rejected: it cannot be exported.
    """
    save(export_program(model, example, dynamic), path)
    return []


def save(program: ExportedProgram, path: Path) -> None:
    """Write a program without what differs between machines: paths and lines of sources."""
    for node in program.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    # Without examples, torch loads a program whose checks of sizes take longer than a small model. Of these, which are
    # one zero each, only the tree counts.
    positional, named = program.example_inputs

    def zeros(value: Any) -> Any:
        return torch.zeros((), dtype=value.dtype).expand(value.shape) if isinstance(value, torch.Tensor) else value

    program._example_inputs = (pytree.tree_map(zeros, positional), pytree.tree_map(zeros, named))
    torch.export.save(program, path)
