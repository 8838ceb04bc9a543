"""Frozen TorchScript: weights as constants, layers fused with the following ones."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torchmar.optimizing.process import exporting, processor
from torchmar.optimizing.process.captured import Captured
from torchmar.optimizing.process.jobs import Made
from torchmar.optimizing.process.precision import channels_last
from torchmar.optimizing.process.source import Source, batch_of

FILE = "model.pt"
_CALLS = 3  # the profiling executor compiles in the second call


def make_torchscript(source: Source, inputs: Sequence[Captured], folder: Path, dtype: str | None = None) -> Made:
    """Make frozen TorchScript, in float32 or another type.

    Raises:
        NotApplicable: the weights are not torch's, or they are frozen already and would have to be converted.
    """
    script = exporting.torchscript(source, inputs, None if dtype is None else getattr(torch, dtype))
    options: dict[str, Any] = {"freeze": True}
    if dtype is not None:
        options |= {"dtype": dtype, **channels_last(script)}
    elif _optimizable(source, script, inputs):
        options["optimize_for_inference"] = True
    needs = () if dtype is None else processor.needs(dtype)
    if source.format == "TORCHSCRIPT":
        return Made(options=options, needs=needs)
    torch.jit.save(script, folder / FILE)
    return Made(options=options, files=(FILE,), needs=needs)


def _optimizable(source: Source, script: torch.jit.ScriptModule, inputs: Sequence[Captured]) -> bool:
    """Return whether the operators of torch.jit.optimize_for_inference accept the inputs; oneDNN's reject some."""
    from torchmar_handlers.common.forward import forward
    from torchmar_handlers.weights import torchscript

    with torchscript.quietly(), contextlib.suppress(RuntimeError), torch.inference_mode():
        frozen = script if torchscript.frozen(script) else torch.jit.freeze(script)
        optimized = torch.jit.optimize_for_inference(frozen)
        for instance in inputs:
            for _ in range(_CALLS):
                forward(optimized, batch_of(instance, source.device), device=source.device)
        return True
    return False
