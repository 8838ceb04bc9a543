"""Joining the values of requests to a batch, and splitting the values of a batch by request."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, MutableMapping
from typing import Any


def batch_key(value: Any) -> Hashable:
    """Return a key that is equal for values that can be joined to a batch; None: the value cannot be joined."""
    if isinstance(value, MutableMapping) and value:
        keys = tuple((name, batch_key(item)) for name, item in value.items())
        return None if any(key is None for _, key in keys) else (type(value), keys)
    # A tuple with one tensor is ambiguous: the tensor may be that of one request or the only input of all.
    if isinstance(value, tuple) and len(value) > 1:
        columns = tuple(map(batch_key, value))
        return None if None in columns else (type(value), columns)
    if _is_array(value) and len(value.shape) and value.shape[0] == 1:
        return type(value), value.dtype, tuple(value.shape)
    return None


def join(values: list[Any]) -> Any:
    """Return values with equal batch keys as one batch."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, MutableMapping):
        batch: Any = copy.copy(first)
        for name in first:
            batch[name] = join([value[name] for value in values])
        return batch
    if isinstance(first, tuple):
        columns = [join(list(column)) for column in zip(*values, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)
    if type(first).__name__ == "ndarray":
        import numpy as np

        return np.concatenate(values)
    import torch

    return torch.cat(values)


def split(value: Any, count: int) -> list[Any] | None:
    """Return the output of a batch split into ``count`` outputs; None: it is not certain which part belongs to which.

    Tensors and arrays have a row for each request, also within mappings, tuples and lists. A list of other values that
    all have the same type has one for each request.
    """
    if count == 1:
        return [value]
    if _has_rows(value, count):
        return [_row(value, index) for index in range(count)]
    if isinstance(value, list) and len(value) == count and len(set(map(type, value))) == 1:
        # A tensor with that many rows may be the output of one request as well as a part of all outputs.
        return None if any(_has_rows(item, count) for item in value) else [[item] for item in value]
    return None


def _row(value: Any, index: int) -> Any:
    return map_arrays(value, lambda array: array[index : index + 1])


def _has_rows(value: Any, count: int) -> bool:
    """Return whether all arrays within a value have ``count`` rows, and there are no other values."""
    if isinstance(value, MutableMapping):
        return bool(value) and all(_has_rows(item, count) for item in value.values())
    if isinstance(value, tuple | list):
        return len(value) not in (0, count) and all(_has_rows(item, count) for item in value)
    return _is_array(value) and len(value.shape) > 0 and value.shape[0] == count


def map_arrays(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value with all its tensors and arrays changed, within mappings, tuples and lists."""
    if isinstance(value, MutableMapping):
        result: Any = copy.copy(value)
        for name in value:
            result[name] = map_arrays(value[name], change)
        return result
    if isinstance(value, tuple | list):
        columns = [map_arrays(item, change) for item in value]
        return type(value)(*columns) if hasattr(value, "_fields") else type(value)(columns)
    return change(value) if _is_array(value) else value


def _is_array(value: Any) -> bool:
    return type(value).__name__ in ("Tensor", "ndarray")
