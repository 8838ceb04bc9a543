"""The inputs of a model, from its weights or the options of the handler, and their descriptions in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchmar_handlers import weights
from torchmar_handlers.common.options import OptionError
from torchmar_handlers.weights import Input

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.float32,
        torch.float64,
    )
}


def declared(model: torch.nn.Module) -> list[Input]:
    """Return the inputs that a model declares, without the dimension of the batch."""
    model_inputs = weights.inputs(model)
    return [
        Input(
            tensor.name or (f"input_{place}" if len(model_inputs) > 1 else ""),
            tensor.dtype,
            tensor.shape[1:] if tensor.shape else None,
        )
        for place, tensor in enumerate(model_inputs)
    ]


def of_option(option: Any, model_inputs: Sequence[Input]) -> list[Input]:
    """Return the inputs of an instance: those of the option ``inputs``, or else those that the model declares.

    Raises:
        OptionError: the option is wrong, or names inputs that the model does not have.
    """
    if option is None:
        return list(model_inputs) or [Input()]
    if not isinstance(option, list) or not option:
        raise OptionError("inputs", "a list of inputs is expected, each with name, dtype and shape")
    inputs: dict[str, Input] = {}
    for position, entry in enumerate(option):
        parsed = _entry(position, entry)
        if parsed.name in inputs:
            raise OptionError("inputs", f"two are called {parsed.name!r}")
        inputs[parsed.name] = parsed
    names = [entry.name for entry in model_inputs if entry.name]
    unknown = [name for name in inputs if name not in names]
    # New names may be given to all inputs, in the model's order; if only some differ, they are probably misspelt.
    if names and unknown and (len(unknown) < len(inputs) or len(inputs) > len(names)):
        raise OptionError("inputs", f"the model has no input {unknown[0]!r}; it has {', '.join(names)}")
    return list(inputs.values())


def _entry(position: int, entry: Any) -> Input:
    """Return the input that an item of the option describes."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise OptionError("inputs", f"item {position} is not an object with a name")
    name, dtype, shape = entry["name"], entry.get("dtype", "float32"), entry.get("shape")
    if extra := [key for key in entry if key not in ("name", "dtype", "shape")]:
        raise OptionError("inputs", f"{name}: there is no {extra[0]!r}; there are name, dtype, shape")
    if dtype not in _DTYPES:
        raise OptionError("inputs", f"{name}: dtype {dtype!r} is none of {', '.join(_DTYPES)}")
    sizes = shape if isinstance(shape, list) else []
    if (shape is not None and not isinstance(shape, list)) or not all(
        size is None or (type(size) is int and size >= 0) for size in sizes
    ):
        raise OptionError("inputs", f"{name}: shape {shape!r} is not a list of sizes, null for any")
    return Input(name, _DTYPES[dtype], None if shape is None else tuple(shape))


def output_names(option: Any) -> tuple[str, ...]:
    """Return the names in the option ``outputs``; empty: it is not set.

    Raises:
        OptionError: the option is no list of names.
    """
    if option is None:
        return ()
    if not isinstance(option, list) or not option or not all(isinstance(name, str) for name in option):
        raise OptionError("outputs", f"{option!r} is not a list of names")
    return tuple(option)


def called(spec: Input) -> str:
    """Return the name of an input for an error."""
    return f"the input {spec.name!r}" if spec.name else "the input"


def described(spec: Input) -> str:
    """Return the type and shape of an input, in words."""
    dtype = str(spec.dtype).removeprefix("torch.") if spec.dtype else "numbers"
    shape = (
        "" if spec.shape is None else f" of the shape [{', '.join('*' if s is None else str(s) for s in spec.shape)}]"
    )
    return f"{spec.name}: {dtype}{shape}" if spec.name else f"{dtype}{shape}"
