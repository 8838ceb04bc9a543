"""Split the output of a batch among requests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch


def split(output: Any, sizes: Sequence[int]) -> list[Any] | None:
    """Return the model's output for each of several parts of a batch, on the CPU.

    Args:
        output: a tensor or an array with a row for each instance, or a mapping, tuple or list of them.
        sizes: number of instances of each part, in their order. The output for a single instance may be any value.

    Returns:
        The outputs, of the same structure; None: the output has no row for each instance.
    """
    output = _changed(output, lambda value: value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    bounds = list(itertools.accumulate(sizes, initial=0))
    if bounds[-1] == 1:
        return [output]
    if not _has_rows(output, bounds[-1]):
        return None
    return [_rows(output, slice(*bound)) for bound in itertools.pairwise(bounds)]


def _rows(output: Any, rows: slice) -> Any:
    return _changed(output, lambda value: value[rows])


def _has_rows(value: Any, count: int) -> bool:
    """Return whether a value consists of tensors and arrays with ``count`` rows.

    A list of ``count`` tensors does not count: each may be the output of one instance.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.ndim > 0 and value.shape[0] == count
    if isinstance(value, Mapping):
        return bool(value) and all(_has_rows(item, count) for item in value.values())
    if isinstance(value, tuple | list):
        is_list_of_rows = isinstance(value, list) and len(value) == count
        return bool(value) and not is_list_of_rows and all(_has_rows(item, count) for item in value)
    return False


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value with its tensors and arrays changed, inside mappings, tuples and lists."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _changed(item, change) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_changed(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
