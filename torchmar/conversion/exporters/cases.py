"""The inputs on which a model and its export are compared: the examples, with other sizes and other values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from torchmar.conversion.exporters.model import Axes, Example, sized

_SIZES = (1, 2, 3, 5)  # sizes of each free dimension, in addition to that of the example and twice that
_WIDER = 10.0  # factor for the values of the example


@dataclass(frozen=True)
class Case:
    """One input for the comparison.

    Attributes:
        name: description for messages: ``the example``, ``batch=5``.
        inputs: tensors by position.
        sizes: sizes of the named dimensions.
        expected: tensors of the answer.
    """

    name: str
    inputs: Example
    sizes: Mapping[str, int]
    expected: Sequence[torch.Tensor] = field(default=())


def vary(examples: Sequence[Example], dynamic: Axes) -> Iterator[Case]:
    """Yield the examples, then the first example with other sizes, with other values, and with both."""
    for number, example in enumerate(examples, 1):
        yield Case("the example" if number == 1 else f"example {number}", example, _sizes(example, dynamic))
    first = examples[0]
    have = _sizes(first, dynamic)
    for name, size in have.items():
        for other in dict.fromkeys((*_SIZES, size + 1, 2 * size)):
            if other != size:
                yield Case(f"{name}={other}", sized(first, dynamic, {name: other}), {**have, name: other})
    generator = torch.Generator().manual_seed(0)
    random = tuple(_random(tensor, generator) for tensor in first)
    yield Case("random values", random, have)
    larger = {name: size + 2 for name, size in have.items()}
    if larger:
        text = ", ".join(f"{name}={size}" for name, size in larger.items())
        values = tuple(_random(tensor, generator) for tensor in sized(first, dynamic, larger))
        yield Case(f"random values, {text}", values, larger)
    if any(tensor.is_floating_point() for tensor in first):
        yield Case("zeros", tuple(_floats(tensor, 0.0) for tensor in first), have)
        yield Case("the example, negated", tuple(_floats(tensor, -1.0) for tensor in first), have)
        yield Case("the example times 10", tuple(_floats(tensor, _WIDER) for tensor in first), have)


def save(cases: Sequence[Case], path: Path) -> None:
    """Write cases to a file."""
    torch.save([(case.name, list(case.inputs), dict(case.sizes), list(case.expected)) for case in cases], path)


def load(path: Path) -> list[Case]:
    """Return the cases in a file of `save`."""
    stored: Any = torch.load(path, weights_only=True)
    return [Case(name, tuple(inputs), sizes, expected) for name, inputs, sizes, expected in stored]


def _sizes(example: Example, dynamic: Axes) -> dict[str, int]:
    return {
        name: tensor.shape[dimension]
        for tensor, axes in zip(example, dynamic, strict=True)
        for dimension, name in axes.items()
    }


def _random(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return random numbers as large as those of a tensor; integers between its smallest and its largest."""
    if not tensor.numel() or tensor.is_complex():
        return tensor
    if tensor.is_floating_point():
        numbers = tensor.float()
        spread = float(numbers.std()) if tensor.numel() > 1 else 0.0
        values = torch.randn(tensor.shape, generator=generator) * (spread or 1.0) + float(numbers.mean())
        return values.to(tensor.dtype)
    if tensor.dtype == torch.bool:
        return torch.randint(0, 2, tensor.shape, generator=generator).bool()
    low, high = int(tensor.min()), int(tensor.max())
    return torch.randint(low, high + 1, tensor.shape, generator=generator).to(tensor.dtype)


def _floats(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    return tensor * factor if tensor.is_floating_point() else tensor
