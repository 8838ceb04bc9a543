"""Attributions: how much each input value speaks for the class that was predicted.

Captum is imported when the first explanation is asked for, since most workers never are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def integrated_gradients(
    model: Callable[[torch.Tensor], torch.Tensor],
    batch: torch.Tensor,
    targets: torch.Tensor,
    n_steps: int,
    rows_at_once: int = 256,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integrate the gradient of a class score along the way from zeros to the input.

    Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017.

    Args:
        model: maps ``(n, ...)`` to scores ``(n, classes)``; must be differentiable.
        batch: inputs, ``(n, ...)``.
        targets: the class of each input, ``(n,)``.
        n_steps: points of the Gauss-Legendre quadrature.
        rows_at_once: rows of a forward pass at the most; bounds the memory.

    Returns:
        The attributions, shaped like ``batch``, and the convergence delta of each input,
        ``(n,)``: the sum of its attributions less the difference of scores that it should equal.
    """
    from captum.attr import IntegratedGradients

    attributions, deltas = IntegratedGradients(model).attribute(
        batch,
        target=targets,
        n_steps=n_steps,
        internal_batch_size=max(rows_at_once, len(batch)),
        return_convergence_delta=True,
    )
    return attributions.detach(), deltas.detach()
