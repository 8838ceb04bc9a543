"""The inputs of a model, as its handler gave them: their file, and batches of them."""

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
        name: of the request, such as ``cat.jpg``; with ``#2`` behind it, the second call of a request.
        args: given by position.
        kwargs: given by name.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...] | None:
        """The tensors by position, then by name; None if an argument is no tensor."""
        values = (*self.args, *self.kwargs.values())
        return values if all(isinstance(value, torch.Tensor) for value in values) else None

    @property
    def rows(self) -> int | None:
        """The number of instances: the first size of all tensors; None if they have none in common."""
        sizes = {value.shape[0] if value.dim() else None for value in self.tensors or ()}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def kind(self) -> tuple[Any, ...]:
        """What inputs of one batch have in common."""
        return tuple((tuple(value.shape[1:]), value.dtype) for value in self.tensors or ())

    @property
    def digest(self) -> str:
        """The SHA-256 of what is given, by which equal inputs are found."""
        digest = hashlib.sha256()
        for value in (*self.args, *self.kwargs.values()):
            for tensor in tensors_in(value):
                digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(
                    tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
                )
        return digest.hexdigest()

    def instances(self) -> list[Captured]:
        """Return an input for each row, since a request may have several; itself if it has no rows."""
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
    torch.save([(each.name, each.args, dict(each.kwargs)) for each in inputs], path)


def load(path: Path) -> list[Captured]:
    """Return the inputs in a file of `save`."""
    return [Captured(name, tuple(args), kwargs) for name, args, kwargs in torch.load(path, weights_only=True)]


def batches(inputs: Sequence[Captured], size: int) -> Iterator[Captured]:
    """Yield batches of ``size`` instances: of each kind of inputs one, which are repeated where they are too few.

    Args:
        inputs: each with tensors alone, and rows.
        size: instances of a batch.
    """
    kinds: dict[tuple[Any, ...], list[Captured]] = {}
    for each in inputs:
        if each.rows:
            kinds.setdefault(each.kind, []).append(each)
    for members in kinds.values():
        members = members[:size]
        repeated = members * -(-size // sum(each.rows or 0 for each in members))

        def joined(values: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.cat(list(values))[:size].contiguous()

        args = tuple(joined(column) for column in zip(*(each.args for each in repeated), strict=True))
        kwargs = {name: joined([each.kwargs[name] for each in repeated]) for name in members[0].kwargs}
        yield Captured(members[0].name, args, kwargs)
