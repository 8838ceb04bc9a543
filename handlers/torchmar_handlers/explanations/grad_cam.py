"""Grad-CAM: the gradient-weighted sum of a convolution's maps.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks", ICCV 2017; without the last
ReLU of the paper, so that parts against the target are visible, too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from torchmar_handlers.explanations.gradients import NoGradientError, pick, pieces, rows_in_a_pass


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
        score: maps ``(k, channels, height, width)`` to ``(k, outputs)`` through ``model``.
        inputs: ``(n, channels, height, width)``.
        targets: ``(n,)``.
        model: an eager model; hooks do not reach into TorchScript.
        layer: the name of the convolution in the model; by default its last ``Conv2d``.
        max_forward_batch: largest number of rows in a pass.

    Raises:
        NoGradientError: there is no eager model, or no convolution in it.
        AttributeError: the model has no layer with this name.
    """
    if model is None or isinstance(model, torch.jit.ScriptModule):
        raise NoGradientError("grad_cam needs an eager model")
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    if inputs.dim() != 4 or not (layer or convolutions):
        raise NoGradientError("grad_cam needs images and a Conv2d")
    module = model.get_submodule(layer) if layer else convolutions[-1]
    maps = []
    for rows in pieces(len(inputs), rows_in_a_pass(inputs[0].numel(), inputs.device, max_forward_batch)):
        activations, slopes = _of_layer(score, inputs[rows], targets[rows], module)
        small = (slopes.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True)
        maps.append(torch.nn.functional.interpolate(small, tuple(inputs.shape[2:]), mode="bilinear"))
    return torch.cat(maps)


def _of_layer(
    score: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, targets: torch.Tensor, module: torch.nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output of a layer, and the gradients of the targets' scores with respect to it."""
    outputs: list[torch.Tensor] = []

    def on_output(module: torch.nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor:
        # Gradients begin here: the layers before it record none.
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()  # the next layer may work in place

    hook = module.register_forward_hook(on_output)
    try:
        with torch.enable_grad():
            total = pick(score(inputs), targets).sum()
    finally:
        hook.remove()
    if not outputs or outputs[-1].dim() != 4:
        raise NoGradientError("grad_cam needs a layer with maps, (n, channels, height, width)")
    (slopes,) = torch.autograd.grad(total, outputs[-1])
    return outputs[-1].detach(), slopes
