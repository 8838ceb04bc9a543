"""The inputs of a model, as recorded from its handler: their file, and batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Captured:
    """One call of a model.

    Attributes:
        name: name of the request, such as ``cat.jpg``; the second call of a request has ``#2`` behind it.
        args: arguments by position.
        kwargs: arguments by name.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...] | None:
        """The tensors by position, then by name; None: an argument is no tensor."""
        values = (*self.args, *self.kwargs.values())
        return values if all(isinstance(value, torch.Tensor) for value in values) else None

    @property
    def rows(self) -> int | None:
        """The number of instances, which is the first size of all tensors; None: the first sizes differ."""
        sizes = {value.shape[0] if value.dim() else None for value in self.tensors or ()}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def kind(self) -> tuple[Any, ...]:
        """The properties that inputs of the same batch share."""
        return tuple((tuple(value.shape[1:]), value.dtype) for value in self.tensors or ())

    @property
    def digest(self) -> str:
        """The SHA-256 of the arguments, which equal inputs share."""
        digest = hashlib.sha256()
        for value in (*self.args, *self.kwargs.values()):
            for tensor in tensors_in(value):
                digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(
                    tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
                )
        return digest.hexdigest()

    def instances(self) -> list[Captured]:
        """Return an input for each row, because a request may have several; the input itself if it has no rows."""
        count = self.rows
        if count is None or count < 2:
            return [self]
        return [
            Captured(
                f"{self.name}[{row}]",
                tuple(value[row : row + 1] for value in self.args),
                {name: value[row : row + 1] for name, value in self.kwargs.items()},
            )
            for row in range(count)
        ]


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors of an argument, which may be a list or a mapping of them."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    return [tensor for item in value for tensor in tensors_in(item)] if isinstance(value, tuple | list) else []


def save(inputs: Sequence[Captured], path: Path) -> None:
    """Write inputs to a file."""
    torch.save([(instance.name, instance.args, dict(instance.kwargs)) for instance in inputs], path)


def load(path: Path) -> list[Captured]:
    """Return the inputs in a file of `save`."""
    return [Captured(name, tuple(args), kwargs) for name, args, kwargs in torch.load(path, weights_only=True)]


def batches(inputs: Sequence[Captured], size: int) -> Iterator[Captured]:
    """Yield batches of ``size`` instances, one for each kind of inputs; if there are too few inputs, they are repeated.

    Args:
        inputs: inputs with only tensors as arguments, and with rows.
        size: instances in a batch.
    """
    kinds: dict[tuple[Any, ...], list[Captured]] = {}
    for instance in inputs:
        if instance.rows:
            kinds.setdefault(instance.kind, []).append(instance)
    for members in kinds.values():
        members = members[:size]
        repeated = members * -(-size // sum(instance.rows or 0 for instance in members))

        def joined(values: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.cat(list(values))[:size].contiguous()

        args = tuple(joined(column) for column in zip(*(instance.args for instance in repeated), strict=True))
        kwargs = {name: joined([instance.kwargs[name] for instance in repeated]) for name in members[0].kwargs}
        yield Captured(members[0].name, args, kwargs)
