"""The scores in the output of an image model: a tensor, or one in a tuple or a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_MAIN = ("logits", "out")  # names of scores beside the outputs of auxiliary heads


def only(output: Any) -> torch.Tensor:
    """Return the main tensor: of a mapping ``logits``, ``out`` or the first, of a tuple the first.

    Raises:
        ValueError: the output is no tensor.
    """
    if isinstance(output, Mapping):
        output = next((output[name] for name in _MAIN if name in output), next(iter(output.values()), None))
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor):
        raise ValueError(f"the model's output is a {type(output).__name__}, not a tensor")
    return output


def detections(output: Any, images: int) -> list[dict[str, torch.Tensor]]:
    """Return for each image its ``boxes`` ``(k, 4)``, ``labels`` and ``scores`` ``(k,)``, on the CPU.

    Torchvision's detectors return a list of these, in TorchScript after the (empty) losses; models
    of stacked batches may also return three tensors with the images first, by name or in this order.

    Raises:
        ValueError: the output has none of these forms.
    """
    names = ("boxes", "labels", "scores")
    if isinstance(output, tuple | list) and len(output) == 2 and isinstance(output[1], list):
        output = output[1]
    if isinstance(output, tuple) and len(output) == 3:
        output = dict(zip(names, output, strict=True))
    if isinstance(output, Mapping) and set(names) <= output.keys():
        output = [{name: output[name][index] for name in names} for index in range(len(output["boxes"]))]
    if not isinstance(output, list | tuple) or len(output) != images:
        raise ValueError(f"the model's output is not a list of boxes, labels and scores for each of {images} images")
    tensors = []
    for detection in output:
        if not isinstance(detection, Mapping) or not set(names) <= detection.keys():
            raise ValueError("the model's output for an image has no boxes, labels and scores")
        tensors.append({name: detection[name].detach().cpu() for name in names})
    return tensors
