"""The base class of programs that declare their inputs: exported, AOTInductor, ONNX and OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Input:
    """One input of a program.

    Args:
        name: name of the input; empty: the program has no names.
        dtype: type of its numbers; None: unknown, or the input is no tensor.
        shape: its dimensions, None for each that may vary; None instead of a shape: unknown.
    """

    name: str = ""
    dtype: torch.dtype | None = None
    shape: tuple[int | None, ...] | None = None

    def accept(self, value: Any, position: int) -> Any:
        """Return ``value`` in the type of the program's input.

        Floats are cast to other floats, whole numbers to wider numbers, and to narrower ones if all of them fit.

        Raises:
            TypeError: its numbers would change.
            ValueError: it has another shape.
        """
        if not isinstance(value, torch.Tensor):
            return value
        if self.dtype is not None and value.dtype != self.dtype:
            value = _cast(value, self.dtype, self._called(position))
        if self.shape is not None and not has_shape(value, self.shape):
            expected = ", ".join("*" if size is None else str(size) for size in self.shape)
            actual = tuple(value.shape)
            raise ValueError(f"input {self._called(position)} has the shape {actual}, and the model takes ({expected})")
        return value

    def _called(self, position: int) -> str:
        return repr(self.name) if self.name else str(position)


def has_shape(value: Any, shape: Sequence[int | None]) -> bool:
    """Return whether a tensor or an array has a shape, in which None is any size."""
    sizes = value.shape
    return len(sizes) == len(shape) and all(
        size == expected or expected is None for size, expected in zip(sizes, shape, strict=True)
    )


class ExportedModel(nn.Module):
    """A program whose inputs are checked, named and put in their order, if they are known.

    Attributes:
        input_names: names of the inputs; empty: unknown.
        output_names: names of the outputs; empty: unknown.
        fixed_rows: batch size of the export, if the program accepts no other; None: any size.
        dtype: type of its first input of floats; float32 if it is unknown.
        differentiable: whether gradients with respect to inputs are available.
    """

    differentiable = False

    def __init__(self, inputs: Sequence[Input] | None, output_names: Sequence[str] = ()) -> None:
        super().__init__()
        self._inputs = None if inputs is None else tuple(inputs)
        known_inputs = self.inputs
        names = tuple(known_input.name for known_input in known_inputs)
        self.input_names: tuple[str, ...] = names if all(names) else ()
        self._names = frozenset(self.input_names)
        self.output_names: tuple[str, ...] = tuple(output_names)
        rows = {known_input.shape[0] for known_input in known_inputs if known_input.shape}
        self.fixed_rows: int | None = rows.pop() if len(rows) == 1 else None
        floats = (
            known_input.dtype
            for known_input in known_inputs
            if known_input.dtype is not None and known_input.dtype.is_floating_point
        )
        self.dtype: torch.dtype = next(floats, torch.float32)
        self.training = False

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs, in the order of positions; empty: unknown."""
        return self._inputs or ()

    def train(self, mode: bool = True) -> ExportedModel:
        """Change nothing: a program stays in the mode that it was exported in."""
        return self

    def arrange(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the inputs, given by position and by name, in the order of the program; for known inputs only.

        Raises:
            TypeError: there are too few or too many inputs, or one of another name or type.
            ValueError: an input has another shape.
        """
        inputs = self.inputs
        values: Sequence[Any]
        if kwargs:
            only_names = not args and kwargs.keys() == self._names
            values = [kwargs[name] for name in self.input_names] if only_names else self._in_order(args, kwargs)
        elif len(args) == len(inputs):
            values = args
        else:
            raise TypeError(f"{len(args)} inputs were given; {self._takes()}")
        return [spec.accept(value, place) for place, (spec, value) in enumerate(zip(inputs, values, strict=True))]

    def _in_order(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        inputs = self.inputs
        places = {known_input.name: place for place, known_input in enumerate(inputs) if known_input.name}
        by_place = dict(enumerate(args))
        for name, value in kwargs.items():
            if name not in places or places[name] in by_place:
                raise TypeError(f"input {name!r} is {'given twice' if name in places else 'unknown'}; {self._takes()}")
            by_place[places[name]] = value
        if set(by_place) != set(range(len(inputs))):
            raise TypeError(f"{len(by_place)} inputs were given; {self._takes()}")
        return [by_place[place] for place in range(len(inputs))]

    def _takes(self) -> str:
        inputs = self.inputs
        names = ", ".join(tensor.name or "?" for tensor in inputs)
        return f"the model takes {len(inputs)}: {names}"


def signature(
    in_spec: Any, out_spec: Any, names: Sequence[str], leaves: Sequence[Input]
) -> tuple[list[Input], list[str], tuple[str, ...]]:
    """Return the inputs of an exported program, the names of its keyword inputs, and the names of its outputs.

    Args:
        in_spec: tree of its arguments and keyword arguments, from torch.export.
        out_spec: tree of its result; only a dict has names.
        names: names of the parameters of its forward; may be empty.
        leaves: tensors of ``in_spec`` in their order; may be empty.
    """
    # Numbers in place of the tensors show the position of each in the trees.
    args, kwargs = pytree.tree_unflatten(list(range(in_spec.num_leaves)), in_spec)
    names = [*names[: len(args)], *kwargs] if len(names) >= len(args) else [*[""] * len(args), *kwargs]
    places = [*args, *kwargs.values()]
    inputs = [
        Input(name, leaves[place].dtype, leaves[place].shape)
        if isinstance(place, int) and len(leaves) == in_spec.num_leaves
        else Input(name)
        for name, place in zip(names, places, strict=True)
    ]
    returned = pytree.tree_unflatten(list(range(out_spec.num_leaves)), out_spec)
    return inputs, list(kwargs), tuple(map(str, returned)) if isinstance(returned, Mapping) else ()


def _cast(value: torch.Tensor, dtype: torch.dtype, title: str) -> torch.Tensor:
    have = value.dtype
    if have.is_floating_point and dtype.is_floating_point:
        return value.to(dtype)
    if torch.promote_types(have, dtype) == dtype:
        return value.to(dtype)
    if not (have.is_floating_point or have.is_complex or dtype == torch.bool):
        cast = value.to(dtype)
        if torch.equal(cast.to(have), value):
            return cast
    kinds = [str(dtype).removeprefix("torch.") for dtype in (dtype, have)]
    raise TypeError(f"input {title} takes {kinds[0]}, which {kinds[1]} cannot be turned into without loss")
