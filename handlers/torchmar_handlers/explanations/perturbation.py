"""Attribution by leaving parts of the input out, for models of any kind.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from torchmar_handlers.explanations.gradients import pieces, rows_in_a_pass

_WINDOW = 7  # a window's side is a seventh of the image's, and moves by half of that
_GRID = 8  # patches along a side


def attribute(
    score: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    baselines: torch.Tensor,
    targets: torch.Tensor,
    method: str,
    groups: torch.Tensor | None,
    max_forward_batch: int,
) -> torch.Tensor:
    """Return how much the target's score loses when a part is replaced by the baseline, shaped like ``inputs``.

    * ``occlusion``: windows that slide over the image, all channels at once; a pixel has the mean of the windows
      that cover it.
    * ``feature_ablation``: patches of a grid or, in tables, columns. Every value of a patch or of a group of
      columns has the loss of the whole.

    Args:
        score: maps ``(k, ...)`` to ``(k, outputs)``.
        inputs: ``(n, channels, ...)`` or, for tables, ``(n, features)``.
        baselines: shaped like ``inputs``.
        targets: ``(n,)``.
        method: ``occlusion`` or ``feature_ablation``.
        groups: for tables, the number of each column's group, ``(features,)``; columns of one group (a one-hot
            encoding) are left out together.
        max_forward_batch: rows of a forward pass at the most.
    """
    from captum.attr import FeatureAblation, Occlusion

    most = rows_in_a_pass(inputs[0].numel(), inputs.device, max_forward_batch)
    results = []
    for rows in pieces(len(inputs), most):
        part = inputs[rows]
        shared = {
            "baselines": baselines[rows],
            "target": targets[rows],
            "perturbations_per_eval": max(1, most // len(part)),
        }
        if method == "occlusion":
            window, stride = _window(part)
            result = Occlusion(score).attribute(part, sliding_window_shapes=window, strides=stride, **shared)
        else:
            mask = _patches(part) if part.dim() > 2 or groups is None else groups.to(part.device)[None]
            result = FeatureAblation(score).attribute(part, feature_mask=mask, **shared)
        results.append(result.detach())
    return torch.cat(results)


def _window(inputs: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if inputs.dim() == 2:
        return (1,), (1,)
    channels, *sides = inputs.shape[1:]
    window = [math.ceil(side / _WINDOW) for side in sides]
    return (channels, *window), (channels, *(max(1, side // 2) for side in window))


def _patches(inputs: torch.Tensor) -> torch.Tensor:
    """Return the number of each value's patch, ``(1, 1, ...)``; in tables each column is one, ``(1, features)``."""
    if inputs.dim() == 2:
        return torch.arange(inputs.shape[1], device=inputs.device)[None]
    numbers = torch.zeros(1, dtype=torch.long, device=inputs.device)
    for side in inputs.shape[2:]:
        count = min(side, _GRID)
        along = torch.arange(side, device=inputs.device) * count // side
        numbers = numbers[..., None] * count + along
    return numbers[None]
