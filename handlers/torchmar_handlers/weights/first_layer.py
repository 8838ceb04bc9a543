"""The shapes that a model's first layer suggests for its input, if it is not declared elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_KINDS = frozenset({"Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d"})
_SIDES = (32, 224)  # sides of an image, or the lengths of a sequence


def typical_inputs(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield tensors of zeros, ``(1, ...)``, that the first layer with weights of a model would accept.

    Only running the model shows whether it accepts one: layers are in the order of their definition, which need
    not be the order of their calls. TorchScript has the same names and attributes.

    Args:
        model: eager or TorchScript; nothing is known about other kinds.
    """
    for layer in model.modules():
        names = [getattr(layer, "original_name", ""), *(base.__name__ for base in type(layer).__mro__)]
        kind = next((name for name in names if name in _KINDS), "")
        weight: Any = getattr(layer, "weight", None)
        if not isinstance(weight, torch.Tensor):
            continue
        if kind == "Linear" and weight.dim() == 2:
            yield torch.zeros(1, weight.shape[1])
        elif kind == "Embedding":
            yield torch.zeros(1, 8, dtype=torch.int64)
        elif kind.startswith("Conv"):
            channels = weight.shape[1] * int(getattr(layer, "groups", 1))
            for side in _SIDES:
                yield torch.zeros(1, channels, *[side] * (weight.dim() - 2))
        else:
            continue
        return
