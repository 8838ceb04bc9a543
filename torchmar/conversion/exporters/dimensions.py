"""The names of dimensions of any size, in the syntax ``batch,seq`` or ``image:batch,_,height,width``."""

from __future__ import annotations

from collections.abc import Sequence

from torchmar.conversion.exporters.model import Axes, Example
from torchmar.conversion.process import Rejected

NONE = "none"  # value in place of names: all dimensions have the sizes of the example
_FIXED = ("", "_", "-")
_USAGE = "names are in the order of the dimensions, with _ for a fixed one: batch,seq or image:batch,_,height,width"


def parse(texts: Sequence[str], names: Sequence[str], example: Example) -> Axes:
    """Return the names of the dimensions of any size, for each input.

    Args:
        texts: texts, each for all inputs, or for one with its name before a colon; ``none``; without a text, ``batch``.
        names: names of the inputs.
        example: example of the inputs.

    Raises:
        Rejected: a text cannot be used.
    """
    if list(texts) == [NONE]:
        return tuple({} for _ in example)
    common: list[str] = []
    by_input: dict[str, list[str]] = {}
    for text in texts:
        name, colon, listed = text.rpartition(":")
        if colon and name not in names[: len(example)]:
            raise Rejected(f"--dynamic {text}: the model has no input {name!r}; it has {', '.join(names)}", _USAGE)
        parts = [part.strip() for part in listed.split(",")]
        if wrong := [part for part in parts if part not in _FIXED and not part.isidentifier()]:
            raise Rejected(f"--dynamic {text}: {wrong[0]!r} is no name of a dimension", _USAGE)
        if colon:
            by_input[name] = parts
        else:
            common = parts
    if not texts:
        common = ["batch"]
    longest = max((tensor.dim() for tensor in example), default=0)
    if len(common) > longest:
        raise Rejected(f"--dynamic {','.join(common)}: the inputs have {longest} dimensions at the most", _USAGE)
    axes = []
    for name, tensor in zip(names, example, strict=False):
        parts = by_input.get(name, common)
        if name in by_input and len(parts) > tensor.dim():
            raise Rejected(f"--dynamic {name}:{','.join(parts)}: {name} has {tensor.dim()} dimensions", _USAGE)
        axes.append({place: part for place, part in enumerate(parts[: tensor.dim()]) if part not in _FIXED})
    _check_sizes(names, example, axes)
    return tuple(axes)


def _check_sizes(names: Sequence[str], example: Example, axes: Axes) -> None:
    """Reject a name for different sizes."""
    by_dimension: dict[str, tuple[str, int]] = {}
    for name, tensor, dimension_names in zip(names, example, axes, strict=False):
        for place, dimension in dimension_names.items():
            size = tensor.shape[place]
            other, before = by_dimension.setdefault(dimension, (name, size))
            if size != before:
                raise Rejected(
                    f"the dimension {dimension} has the size {before} in {other} and {size} in {name}",
                    f"give each input its own names: --dynamic {name}:...",
                )
