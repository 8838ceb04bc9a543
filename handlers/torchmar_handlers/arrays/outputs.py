"""The outputs of a model as arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch


def to_numpy(value: Any, name: str, rows: int) -> np.ndarray:
    """Return an output as an array with ``rows`` items."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"the output {name!r} is {type(value).__name__}, not a tensor")
    shape = value.shape
    if not shape or shape[0] != rows:
        raise ValueError(f"the output {name!r} has the shape {list(shape)}, whose first size is not {rows}")
    if value.dtype == torch.bfloat16:  # NumPy has no bfloat16
        value = value.float()
    array: np.ndarray = (value if value.is_cpu else value.cpu()).numpy()
    return array


def is_finite(array: np.ndarray) -> bool:
    """Return whether no number of an array is NaN or infinite."""
    if array.dtype.kind != "f":
        return True
    # The sum of squares takes a fraction of the time; it is finite only if all numbers are finite.
    flat = array.ravel()
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(array).all())
