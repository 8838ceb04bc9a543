"""One forward pass of a batch, for all kinds of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from torchmar_handlers import weights
from torchmar_handlers.request import MAPPINGS


def forward(model: torch.nn.Module, batch: Any, *, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Return the model's output for a batch.

    Args:
        model: model from `torchmar_handlers.weights.load`.
        batch: a tensor, a tuple of positional tensors, or a mapping of named ones, each ``(n, ...)``;
            any other value (a list of images of different sizes) is passed unchanged.
        device: device of the tensors, which are moved to it if necessary.
        dtype: type to which floating tensors are converted (a model in half precision); None: they are unchanged.
            Outputs are then converted to float32.

    A model that was exported with a fixed batch size gets batches of that size; the last one is
    filled with copies of its last row, whose outputs are dropped.
    """
    if dtype is not None or not _all_on(batch, device):
        batch = _each(batch, lambda tensor: _moved(tensor, device, dtype))
    fixed = weights.fixed_rows(model)
    output = _call(model, batch) if fixed is None else _call_in_parts(model, batch, fixed)
    return _each(output, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor) if dtype else output


def _call_in_parts(model: Callable[..., Any], batch: Any, size: int) -> Any:
    rows = len(_tensors(batch)[0])
    parts = []
    for start in range(0, rows, size):

        def part(tensor: torch.Tensor, start: int = start) -> torch.Tensor:
            return _filled(tensor[start : start + size], size)

        parts.append(_call(model, _each(batch, part)))
    return _each(_joined(parts), lambda tensor: tensor[:rows])


def _call(model: Callable[..., Any], batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return model(batch)
    if isinstance(batch, tuple):
        return model(*batch)
    if isinstance(batch, MAPPINGS):
        return model(**batch)
    return model(batch)


def _all_on(batch: Any, device: torch.device) -> bool:
    """Return whether a batch is a tensor, or tensors by name or position, and no tensor has to be moved."""
    tensors = batch.values() if isinstance(batch, MAPPINGS) else batch if isinstance(batch, tuple) else (batch,)
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, torch.Tensor) or tensor.device != device]
    return not elsewhere


def _moved(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None and tensor.device == device:
        return tensor
    target_dtype = dtype if dtype and tensor.is_floating_point() else tensor.dtype
    return tensor.to(device, target_dtype, non_blocking=True)


def _filled(rows: torch.Tensor, count: int) -> torch.Tensor:
    missing = count - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


def _each(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return ``value`` with its tensors changed, inside tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        items = [_each(item, change) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, MAPPINGS):
        return {key: _each(element, change) for key, element in value.items()}
    return value


def _tensors(value: Any) -> list[torch.Tensor]:
    tensors: list[torch.Tensor] = []
    _each(value, lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return tensors


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(_joined(list(column)) for column in zip(*parts, strict=True))
    return first
