"""A class for every pixel: from a model's scores to runs, PNG and numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torchmar_handlers.request import BadRequest


def most_probable(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probability and the class of every pixel, both ``(n, height, width)``.

    Args:
        scores: ``(n, classes, height, width)``; with one class, its score against the background.

    Raises:
        ValueError: there are more than 65,536 classes, or the shape is wrong.
    """
    if scores.dim() != 4 or scores.shape[1] > 1 << 16:
        raise ValueError(f"scores of {tuple(scores.shape)} are not (n, classes, height, width)")
    if scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], 1)
    best, classes = scores.max(1)
    # The softmax of the highest score only.
    probabilities = (best - scores.logsumexp(1)).exp()
    return probabilities, classes.to(torch.uint8 if scores.shape[1] <= 256 else torch.int32)


def nearest(count: int, size: int) -> np.ndarray:
    """Return the indices of the pixels of a side that are nearest to the centres of ``count`` pixels."""
    return np.minimum(((np.arange(count) + 0.5) * size / count).astype(np.int64), size - 1)


def runs(classes: np.ndarray) -> list[list[int]]:
    """Return a class map ``(height, width)`` as pairs of a class and its number of consecutive pixels, row by row."""
    flat = classes.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=len(flat))
    return np.stack([flat[starts].astype(np.int64), lengths], 1).tolist()  # type: ignore[no-any-return]


def of_runs(pairs: Sequence[Sequence[int]], shape: Sequence[int]) -> np.ndarray:
    """Return the class map for the runs from `runs`, int32."""
    classes, lengths = np.array(pairs, np.int32).T
    return np.repeat(classes, lengths).reshape(shape)


def document(classes: np.ndarray, probabilities: np.ndarray, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return a class map as JSON: shape, runs, and for each class in it the pixels and their mean probability.

    Args:
        classes: ``(height, width)``.
        probabilities: probability of the class of each pixel, in the same shape.
        labels: the names of classes by their index as text. Classes without a name, and classes with
            the same name, get their index as name.
    """
    pixels = np.bincount(classes.ravel())
    sums = np.bincount(classes.ravel(), probabilities.ravel())
    names = list(labels.values())
    present = {}
    for index in np.flatnonzero(pixels).tolist():
        label = labels.get(str(index), str(index))
        present[label if names.count(label) == 1 else str(index)] = {
            "index": index,
            "pixels": int(pixels[index]),
            "probability": round(float(sums[index] / pixels[index]), 6),
        }
    return {"shape": list(classes.shape), "runs": runs(classes), "classes": present}


def png(classes: np.ndarray) -> bytes:
    """Return a class map as a PNG with a palette: the index of a pixel is its class.

    Raises:
        BadRequest: there are more classes than a palette has colours (406).
    """
    from PIL import Image

    if classes.dtype != np.uint8:
        raise BadRequest("a PNG's palette has 256 colours, and there are more classes; ask for JSON", 406)
    image = Image.fromarray(classes)
    image.putpalette(palette().tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def palette() -> np.ndarray:
    """Return the 256 colours of PASCAL VOC's class maps, ``(256, 3)`` bytes; 0 is black.

    The bits of the index, three at a time, are the highest bits of red, green and blue (VOCdevkit, labelcolormap.m).
    """
    index = np.arange(256)
    bits = (index[:, None] >> np.arange(8)) & 1  # lowest first, (256, 8)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        colours[:, bit % 3] |= bits[:, bit] << (7 - bit // 3)
    return colours.astype(np.uint8)
