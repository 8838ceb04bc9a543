"""bfloat16 and float16 in place of float32, with the channels of convolutions last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from torchmar.conversion.exporters import exported
from torchmar.optimizing.process import exporting, processor
from torchmar.optimizing.process.captured import Captured
from torchmar.optimizing.process.jobs import Made, NotApplicable
from torchmar.optimizing.process.source import Source

FILE = "model.pt2"


def make_precision(source: Source, inputs: Sequence[Captured], folder: Path, dtype: str) -> Made:
    """Make the variant that computes in ``dtype``: by options, or by an exported program of that type.

    Raises:
        NotApplicable: the weights are not torch's, or they are constants.
    """
    from torchmar_handlers.weights import torchscript

    module = exporting.torch_module(source)
    needs = processor.needs(dtype) if source.device.type == "cpu" else ()
    if source.format == "EXPORTED":
        exported.save(exporting.program(source, inputs, getattr(torch, dtype)), folder / FILE)
        return Made(files=(FILE,), needs=needs)
    if isinstance(module, torch.jit.ScriptModule) and torchscript.frozen(module):
        raise NotApplicable("the TorchScript archive is frozen: its weights are constants, which are not converted")
    return Made(options={"dtype": dtype, **channels_last(module)}, needs=needs)


def channels_last(module: torch.nn.Module) -> dict[str, bool]:
    """Return the option that stores weights of convolutions with the channels last, if there are convolutions."""
    return {"channels_last": True} if any(parameter.dim() == 4 for parameter in module.parameters()) else {}
