"""Attribution by replacing parts of the input, for models of any kind.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from torchmar_handlers.explanations.gradients import pick, pieces, rows_in_a_pass

_WINDOW = 7  # a window's side is a seventh of the image's, and moves by half of that
_GRID = 8  # patches along a side


def attribute(
    score: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    baselines: torch.Tensor,
    targets: torch.Tensor,
    reached: torch.Tensor,
    method: str,
    groups: torch.Tensor | None,
    max_forward_batch: int,
) -> torch.Tensor:
    """Return the loss of the target's score when a part is replaced by the baseline, in the shape of ``inputs``.

    * ``occlusion``: windows that slide over the image, all channels at once; a pixel gets the mean of the windows
      that cover it.
    * ``feature_ablation``: patches of a grid or, in tables, columns. Every value of a patch or of a group of
      columns has the loss of the whole.

    The parts of all rows share forward passes. A part that equals its baseline has no loss, and needs no pass.

    Args:
        score: maps ``(k, ...)`` to ``(k, outputs)``.
        inputs: ``(n, channels, ...)`` or, for tables, ``(n, features)``.
        baselines: baselines in the shape of ``inputs``.
        targets: ``(n,)``.
        reached: target's score of each row, ``(n,)``.
        method: ``occlusion`` or ``feature_ablation``.
        groups: number of each column's group in a table, ``(features,)``; columns of one group (a one-hot encoding)
            are replaced together.
        max_forward_batch: largest number of rows in a forward pass.
    """
    sides = inputs.shape[2:] if inputs.dim() > 2 else inputs.shape[1:]
    if method == "occlusion":
        axes = [_windows(side, images=inputs.dim() > 2) for side in sides]
    elif inputs.dim() > 2 or groups is None:
        axes = [_intervals(side, images=inputs.dim() > 2) for side in sides]
    else:
        axes = [groups.cpu() == groups.unique().cpu()[:, None]]
    axes = [axis.to(inputs.device) for axis in axes]
    differs = inputs != baselines
    if inputs.dim() > 2:
        differs = differs.any(1)
    counts = differs.float()
    for axis in reversed(axes):  # the last dimension is replaced, and becomes the first of the parts
        counts = torch.movedim(counts @ axis.float().T, -1, 1)
    places = counts.nonzero().unbind(1)
    losses = torch.zeros_like(counts)
    channels = [1] * (inputs.dim() - 1 - len(axes))
    for piece in pieces(len(places[0]), rows_in_a_pass(inputs[0].numel(), inputs.device, max_forward_batch)):
        row, *parts = (indices[piece] for indices in places)
        mask = _outer([axis[part] for axis, part in zip(axes, parts, strict=True)])
        mask = mask.view((len(row), *channels, *mask.shape[1:]))
        with torch.no_grad():
            masked_scores = score(torch.where(mask, baselines[row], inputs[row]))
        place = (row, *parts)
        losses[place] = reached[row].float() - pick(masked_scores, targets[row]).float()
    total, covered = losses, torch.ones_like(losses[:1])
    for axis in reversed(axes):
        total, covered = (torch.movedim(values @ axis.float(), -1, 1) for values in (total, covered))
    means = (total / covered).view((len(inputs), *channels, *sides))
    return means.expand_as(inputs).to(inputs.dtype)


def _outer(masks: list[torch.Tensor]) -> torch.Tensor:
    """Return the values inside the part along every axis, ``(k, ...sides)``, from masks ``(k, side)``."""
    result = masks[0]
    for mask in masks[1:]:
        result = result[..., None] & mask.view(len(mask), *[1] * (result.dim() - 1), -1)
    return result


def _windows(side: int, *, images: bool) -> torch.Tensor:
    """Return the values that each of the overlapping windows along a side covers, ``(windows, side)``."""
    width = math.ceil(side / _WINDOW) if images else 1
    stride = max(1, width // 2)
    starts = torch.arange(1 + math.ceil((side - width) / stride))[:, None] * stride
    values = torch.arange(side)
    return (values >= starts) & (values < starts + width)


def _intervals(side: int, *, images: bool) -> torch.Tensor:
    """Return the values that each of the intervals of a side covers, ``(intervals, side)``."""
    count = min(side, _GRID) if images else side
    return torch.arange(side) * count // side == torch.arange(count)[:, None]
