"""Grad-CAM: the gradient-weighted sum of a convolution's maps.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks", ICCV 2017; without the last
ReLU of the paper, so that what speaks against the target shows too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from torchmar_handlers.explanations.gradients import NoGradientError, pieces, rows_in_a_pass


def attribute(
    score: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    model: torch.nn.Module | None,
    layer: str | None,
    max_forward_batch: int,
) -> torch.Tensor:
    """Return the map of each image, ``(n, 1, height, width)``.

    Args:
        score: maps ``(k, channels, height, width)`` to ``(k, outputs)`` by way of ``model``.
        inputs: ``(n, channels, height, width)``.
        targets: ``(n,)``.
        model: an eager model; captum's hooks do not reach into TorchScript.
        layer: the name of the convolution in the model; by default its last ``Conv2d``.
        max_forward_batch: rows of a pass at the most.

    Raises:
        NoGradientError: there is no eager model, or no convolution in it.
        AttributeError: the model has no layer of that name.
    """
    if model is None or isinstance(model, torch.jit.ScriptModule):
        raise NoGradientError("grad_cam needs an eager model")
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    if inputs.dim() != 4 or not (layer or convolutions):
        raise NoGradientError("grad_cam needs images and a Conv2d")
    from captum.attr import LayerAttribution, LayerGradCam

    method = LayerGradCam(score, model.get_submodule(layer) if layer else convolutions[-1])
    maps = []
    for rows in pieces(len(inputs), rows_in_a_pass(inputs[0].numel(), inputs.device, max_forward_batch)):
        small = method.attribute(inputs[rows].clone().requires_grad_(), target=targets[rows])
        maps.append(LayerAttribution.interpolate(small, tuple(inputs.shape[2:]), "bilinear").detach())
    return torch.cat(maps)
