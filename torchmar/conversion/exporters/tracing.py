"""The trace of one call by torch.jit, with the lines at which it depends on the example."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import nn
from torch.jit._trace import TracerWarning

from torchmar.conversion.exporters import failure
from torchmar.conversion.exporters.model import Example


def trace(module: nn.Module, example: Example) -> tuple[Any, list[str]]:
    """Return the trace of a call, and the places of the tracer's warnings: ``Using len to get tensor shape at
    net.py:7``.

    Raises:
        Exception: any exception of the model or torch.
    """
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        traced: Any = torch.jit.trace(module, example, check_trace=False, strict=False)
    return traced, [
        f"{re.split(r'[.:] | might ', str(warning.message))[0]} at {failure.shown(warning.filename, warning.lineno)}"
        for warning in caught
        if issubclass(warning.category, TracerWarning)
    ]
