"""The scores or vectors in the output of a text model: a tensor, or one in a tuple or a mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchmar_handlers.request import NotFinite

SCORES = ("logits", "scores")
VECTORS = ("sentence_embedding", "embedding", "embeddings", "pooler_output", "last_hidden_state")


def only(output: Any, preferred: Sequence[str], names: Sequence[str] = ()) -> torch.Tensor:
    """Return the main tensor: the first of ``preferred`` that exists, or the first of all.

    Args:
        output: a tensor, a mapping of named tensors, or a tuple.
        preferred: names, the best first.
        names: names of a tuple's tensors, if they are known.

    Raises:
        ValueError: the output is no tensor.
    """
    if isinstance(output, tuple | list) and output:
        output = dict(zip(names, output, strict=True)) if len(names) == len(output) else output[0]
    if isinstance(output, Mapping):
        output = next((output[name] for name in preferred if name in output), next(iter(output.values()), None))
    if not isinstance(output, torch.Tensor):
        raise ValueError(f"the model's output is a {type(output).__name__}, not a tensor")
    return output


def scores(output: Any, shape: Sequence[int], names: Sequence[str] = ()) -> torch.Tensor:
    """Return scores, float32, whose first dimensions are ``shape``, with one more for the classes.

    Raises:
        ValueError: the scores have other dimensions.
        NotFinite: a score is not a number.
    """
    values = only(output, SCORES, names)
    if values.shape[:-1] != torch.Size(shape):
        expected = ", ".join(map(str, (*shape, "classes")))
        raise ValueError(f"the model's output has the shape {tuple(values.shape)}, not ({expected})")
    if not bool(values.isfinite().all()):
        raise NotFinite("the model's output for this text is not a number")
    return values.float()
