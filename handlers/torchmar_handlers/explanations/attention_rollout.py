"""Attention rollout: the share of each patch of an image that reaches the output of a vision transformer.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020: the mean of the heads of each layer, mixed
half and half with the identity for the residual connection, multiplied from the first layer to the last. It depends on
the image alone and not on the target, and has no negative values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from torchmar_handlers.explanations.gradients import NoGradientError, pieces, rows_in_a_pass


def attribute(
    score: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    model: torch.nn.Module | None,
    max_forward_batch: int,
) -> torch.Tensor:
    """Return the map of each image, ``(n, 1, height, width)``; the values of its patches have the sum 1.

    Attention weights are the outputs of the model's modules of the class `torch.nn.Softmax`, ``(k, heads, tokens,
    tokens)``, in the order in which they are computed. The tokens are the patches, row by row, after a class token
    if the model has one.

    Args:
        score: maps ``(k, channels, height, width)`` to ``(k, outputs)`` through ``model``.
        inputs: ``(n, channels, height, width)``.
        model: an eager model; hooks do not reach into TorchScript.
        max_forward_batch: largest number of rows in a pass.

    Raises:
        NoGradientError: there is no eager model, or no attention over the patches of an image in it.
    """
    if model is None or isinstance(model, torch.jit.ScriptModule):
        raise NoGradientError("attention_rollout needs an eager model")
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Softmax)]
    if inputs.dim() != 4 or not layers:
        raise NoGradientError("attention_rollout needs images and a model with a torch.nn.Softmax for its attention")
    maps = []
    for rows in pieces(len(inputs), rows_in_a_pass(inputs[0].numel(), inputs.device, max_forward_batch)):
        patches = _patches(_attention(score, inputs[rows], layers), inputs.shape[2] / inputs.shape[3])
        maps.append(torch.nn.functional.interpolate(patches, tuple(inputs.shape[2:]), mode="bilinear"))
    return torch.cat(maps)


def rollout(attention: list[torch.Tensor]) -> torch.Tensor:
    """Return the share of each token that reaches each token of the last layer, ``(n, tokens, tokens)``; rows sum to 1.

    Args:
        attention: the weights of each layer, ``(n, heads, tokens, tokens)``.
    """
    total = torch.eye(attention[0].shape[-1], device=attention[0].device)[None]
    for weights in attention:
        mean = weights.float().mean(1)
        mixed = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
        total = mixed / mixed.sum(-1, keepdim=True) @ total
    return total


def _attention(
    score: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, layers: Sequence[torch.nn.Module]
) -> list[torch.Tensor]:
    """Return the attention weights of a pass, by layer."""
    maps: list[torch.Tensor] = []

    def on_output(module: torch.nn.Module, arguments: object, output: torch.Tensor) -> None:
        if output.dim() == 4 and output.shape[2] == output.shape[3] and len(output) == len(inputs):
            maps.append(output.detach())

    hooks = [layer.register_forward_hook(on_output) for layer in layers]
    try:
        with torch.no_grad():
            score(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not maps or len({weights.shape[-1] for weights in maps}) > 1:
        raise NoGradientError("attention_rollout needs attention over the same tokens in every layer")
    return maps


def _patches(attention: list[torch.Tensor], aspect: float) -> torch.Tensor:
    """Return the share of each patch in the output, ``(n, 1, rows, columns)``."""
    total = rollout(attention)
    tokens = total.shape[-1]
    for has_class in (True, False):
        count = tokens - has_class
        height = round(math.sqrt(count * aspect))
        if height and count % height == 0 and math.isclose(height / (count // height), aspect, rel_tol=0.2):
            # Without a class token, models use the mean of all tokens.
            values = total[:, 0, 1:] if has_class else total.mean(1)
            values = values / values.sum(-1, keepdim=True)
            return values.reshape(len(values), 1, height, count // height)
    raise NoGradientError(f"the model's {tokens} tokens are not the patches of an image")
