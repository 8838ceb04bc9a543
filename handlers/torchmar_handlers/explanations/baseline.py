"""Baselines: values that represent "nothing" in an input."""

from __future__ import annotations

from typing import Any

import torch

from torchmar_handlers.request import BadRequest

_BLUR = 8  # a blurred image has no detail finer than an eighth of its side


def of(choice: Any, row: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
    """Return the baseline of one row, in the model's units and the row's shape.

    Args:
        choice: ``zeros``; ``mean``; ``blur``; a number for every value; or numbers that
            broadcast to the row's shape.
        row: an image ``(channels, height, width)`` or the values of a table's row ``(features,)``.
        mean: values for ``mean``, for instance the columns' means of the training data; by default an
            image's own mean colour.

    Raises:
        BadRequest: the choice does not fit the input.
    """
    if choice == "zeros":
        return torch.zeros_like(row)
    if choice == "mean" and mean is not None:
        return mean.to(row).expand_as(row)
    if choice == "mean" and row.dim() == 3:
        return row.mean((1, 2), keepdim=True).expand_as(row)
    if choice == "mean":
        raise BadRequest("baseline 'mean': the archive says no means; send the values themselves")
    if choice == "blur" and row.dim() == 3:
        return _blurred(row)
    if choice == "blur":
        raise BadRequest("baseline 'blur' is for images")
    if isinstance(choice, str):
        raise BadRequest(f"baseline {choice!r} is not for such inputs")
    values = torch.as_tensor(choice, dtype=row.dtype, device=row.device)
    try:
        return values.expand_as(row)
    except RuntimeError:
        raise BadRequest(f"baseline of shape {list(values.shape)}; the input's is {list(row.shape)}") from None


def _blurred(image: torch.Tensor) -> torch.Tensor:
    """Return an image after a Gaussian blur, with its edges repeated beyond them."""
    result = image[None]
    for axis in (2, 3):
        sigma = image.shape[axis - 1] / _BLUR / 2
        reach = min(round(3 * sigma), image.shape[axis - 1] - 1)
        offsets = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
        weights = torch.softmax(-(offsets**2) / (2 * sigma**2), 0)
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        kernel = weights.view(shape).expand(image.shape[0], 1, *shape[2:])
        padding = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
        padded = torch.nn.functional.pad(result, padding, mode="replicate")
        result = torch.nn.functional.conv2d(padded, kernel, groups=image.shape[0])
    return result[0]
