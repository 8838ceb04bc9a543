"""The values of a request as arrays of the types and shapes that a model takes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from torchmar_handlers.arrays.specification import called, described
from torchmar_handlers.request import BadRequest
from torchmar_handlers.weights import Input
from torchmar_handlers.weights.exported_model import has_shape

_TAKEN = {"b": "b", "u": "ui", "i": "ui", "f": "uif"}  # kinds of numbers that are accepted for another kind
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_LARGEST_SQUARE = float(np.finfo(np.float32).max) ** 2


def is_many(value: Any, spec: Input | None) -> bool:
    """Return whether a value has one dimension more than an instance of an input."""
    if spec is None or spec.shape is None:
        return False
    rank = 0
    if isinstance(value, np.ndarray):
        rank = value.ndim
    else:
        while isinstance(value, list):
            rank += 1
            value = value[0] if value else None
    return rank == len(spec.shape) + 1


def array_of(value: Any, spec: Input) -> np.ndarray:
    """Return the array of one input.

    Raises:
        BadRequest: the value is no array, or has another type or shape.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        raise BadRequest(f"{called(spec)} is nested unevenly, or too deep; {described(spec)} is expected") from None
    if array.dtype.kind not in "biuf":
        for place, leaf in _leaves(value.tolist() if isinstance(value, np.ndarray) else value):
            if isinstance(leaf, bool) or not isinstance(leaf, int | float) or abs(leaf) >= 2**63:
                position = f" at {list(place)}" if place else ""
                raise BadRequest(f"{called(spec)} is {leaf!r:.40}{position}; {described(spec)} is expected")
        raise BadRequest(f"{called(spec)} is of {array.dtype}; {described(spec)} is expected")
    if spec.shape is not None and not has_shape(array, spec.shape):
        raise BadRequest(f"{called(spec)} has the shape {list(array.shape)}; {described(spec)} is expected")
    return _cast(array, _wanted(array, value, spec), spec)


@functools.cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """Return the type of arrays for a type of torch."""
    # NumPy has no bfloat16; the model converts float32 itself.
    numpy_dtype: np.dtype = torch.empty(0, dtype=torch.float32 if dtype == torch.bfloat16 else dtype).numpy().dtype
    return numpy_dtype


def _wanted(array: np.ndarray, value: Any, spec: Input) -> np.dtype:
    if spec.dtype is not None:
        return numpy_dtype(spec.dtype)
    if array.dtype.kind == "f" and not isinstance(value, np.ndarray):
        return _FLOAT32
    dtype: np.dtype = array.dtype.newbyteorder("=")
    return dtype


def _cast(array: np.ndarray, dtype: np.dtype, spec: Input) -> np.ndarray:
    if array.dtype == _FLOAT64 and dtype == _FLOAT32 and _fits_float32(array):
        return array.astype(dtype, order="C")
    if array.dtype.kind not in _TAKEN[dtype.kind] and array.size:
        raise BadRequest(f"{called(spec)} is of {_kind(array.dtype)}; {dtype} is expected")
    if dtype.kind in "iu" and array.dtype != dtype and array.size:
        limits = np.iinfo(dtype)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            beyond = low if low < limits.min else high
            message = f"{called(spec)} has {beyond}, which {dtype} does not hold ({limits.min} to {limits.max})"
            raise BadRequest(message)
    if dtype.kind == "f" and array.dtype != dtype:
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(array, dtype)
        if np.isinf(cast).any() and not np.isinf(array).any():
            number = float(array[np.isinf(cast)].ravel()[0])
            raise BadRequest(f"{called(spec)} has {number:g}, which {dtype} does not hold")
    else:
        cast = np.ascontiguousarray(array, dtype)
    # A view of a request's bytes is read-only, but torch ignores this.
    cast = cast if cast.flags.writeable else cast.copy()
    return cast if cast.shape == array.shape else cast.reshape(array.shape)


def _fits_float32(array: np.ndarray) -> bool:
    """Return whether all numbers are certainly finite as float32: otherwise the sum of squares is not finite."""
    flat = array.ravel()
    return bool(flat.dot(flat) <= _LARGEST_SQUARE)


def _kind(dtype: np.dtype) -> str:
    return {"b": "booleans", "f": "numbers with fractions"}.get(dtype.kind, "whole numbers")


def _leaves(value: Any, place: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Any]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*place, index))
    else:
        yield place, value
