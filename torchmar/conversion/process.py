"""Common parts of the processes of conversions: the job, the result or the rejection, and the samples of a recipe.

Job and result are JSON, on standard input and output; `torchmar.conversion.starting` is the other end.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Rejected(Exception):
    """The model cannot be converted; the message is for its owner, ``hint`` is the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Inapplicable(Rejected):
    """The request is not possible, or a package is missing; this is not a fault of the model."""


def main(convert: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read a job from standard input, run it, and write the result or the rejection as one line of JSON.

    Args:
        convert: returns the result of a job; its output, and that of libraries and compilers, is redirected to
            standard error.

    Raises:
        Exception: all exceptions except Rejected; the process ends with a traceback.
    """
    result = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        document = {"converted": convert(json.load(sys.stdin))}
    except Rejected as error:
        document = {"rejected": {"message": str(error), "hint": error.hint}}
    with result:
        result.write(json.dumps(document))


def sample_arrays(sample: Any, names: Sequence[str]) -> list[np.ndarray[Any, Any]]:
    """Return the tensors of a sample, one for each input.

    Args:
        sample: a JSON value, ``{"npy": base64}``, or a request, whose first element of ``instances`` is used.
        names: names of the inputs.

    Raises:
        ValueError: the sample does not have one tensor for each input,
        TypeError: or has another type,
        LookupError: or lacks a name.
    """
    if isinstance(sample, dict) and sample.keys() == {"npy"}:
        sample = np.load(io.BytesIO(base64.b64decode(sample["npy"])), allow_pickle=False)
    elif isinstance(sample, dict) and sample.keys() == {"instances"}:
        sample = sample["instances"][0]
    values = [sample[name] for name in names] if isinstance(sample, dict) else [sample]
    if len(values) != len(names):
        raise ValueError(f"it has {len(values)} inputs, not {len(names)}")
    return [np.asarray(value) for value in values]


def fitted(array: np.ndarray[Any, Any], shape: Sequence[int | None]) -> np.ndarray[Any, Any]:
    """Return an array with a shape, in which None is any size; one instance becomes a batch.

    Raises:
        ValueError: the array has another shape.
    """
    if array.ndim == len(shape) - 1:
        array = array[None]
    if array.ndim != len(shape) or any(size not in (None, have) for size, have in zip(shape, array.shape, strict=True)):
        raise ValueError("it has another shape")
    return array


def gap(expected: np.ndarray[Any, Any], actual: np.ndarray[Any, Any]) -> float:
    """Return the largest difference, relative to the largest expected number or 1.

    Equal infinities do not differ, and NaNs do not differ from each other. Any difference of integers or booleans is
    infinite, because they are labels and indices.
    """
    if expected.dtype.kind in "iub" and actual.dtype.kind in "iub":
        return 0.0 if np.array_equal(expected, actual) else float("inf")
    first, second = expected.astype(np.float64), actual.astype(np.float64)
    other = ~((first == second) | (np.isnan(first) & np.isnan(second)))
    if not other.any():
        return 0.0
    largest = float(np.abs(first - second)[other].max())
    scale = max(1.0, float(np.abs(first[np.isfinite(first)]).max(initial=0)))
    return largest / scale if largest == largest else float("inf")
