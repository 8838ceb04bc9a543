"""The files of examples: arrays, JSON and tensors."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmar.conversion.exporters.model import Example
from torchmar.conversion.process import Rejected

KNOWN = ".npy, .npz, .json, .jsonl, .pt and .safetensors"
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


def read(file: Path, names: Sequence[str], floats: torch.dtype, required: int) -> list[Example]:
    """Return the examples in a file.

    Args:
        file: path of a file with an array, arrays by name, a JSON value, a JSON value on each line, or tensors.
        names: names of the model's inputs.
        floats: type for floating-point numbers.
        required: number of inputs that the model needs.

    Raises:
        Rejected: the file cannot be read, or has other inputs than the model.
    """
    try:
        values = _values(file)
    except (OSError, ValueError, EOFError, pickle.UnpicklingError, RuntimeError) as error:
        raise Rejected(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from None
    return [_example(file, value, names, floats, required) for value in values]


def of_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]) -> Example:
    """Return a recorded call of a model as an example, by position.

    Args:
        name: name of the request.
        args: arguments by position.
        kwargs: arguments by name.
        names: names of the model's inputs.

    Raises:
        Rejected: an argument is not a tensor, or one is missing before another.
    """
    values = [*args, *(kwargs[key] for key in names[len(args) :] if key in kwargs)]
    if not all(isinstance(value, torch.Tensor) for value in values):
        kinds = ", ".join(
            dict.fromkeys(type(value).__name__ for value in values if not isinstance(value, torch.Tensor))
        )
        raise Rejected(
            f"the handler gives its model no tensors for {name}, but {kinds}, which only a model in Python takes",
            "give an example of a model that takes tensors: --example x.npy",
        )
    if set(kwargs) != set(names[len(args) : len(values)]):
        raise Rejected(
            f"the handler calls its model with {', '.join(kwargs)}, which is not the order of its inputs "
            f"({', '.join(names)})",
            "give an example: --example inputs.npz, with an array for each name",
        )
    return tuple(values)


def _values(file: Path) -> list[Any]:
    kind = file.suffix.lower()
    if kind == ".npy":
        return [np.load(file, allow_pickle=False)]
    if kind == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            keys = list(arrays.files)
            if keys and all(key == f"arr_{place}" for place, key in enumerate(keys)):
                return [[arrays[key] for key in keys]]
            return [{key: arrays[key] for key in keys}]
    if kind == ".json":
        return [_of_json(json.loads(file.read_bytes()))]
    if kind == ".jsonl":
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [_of_json(json.loads(line)) for line in lines]
    if kind in (".pt", ".pth"):
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        return [loaded if isinstance(loaded, Mapping) else list(loaded) if isinstance(loaded, tuple | list) else loaded]
    if kind == ".safetensors":
        from safetensors.torch import load_file

        return [load_file(file)]
    hint = f"examples are {KNOWN}"
    if kind in _IMAGES:
        hint += (
            "; an image is what a handler turns into a tensor: name the recipe or the archive in place of the weights"
        )
    raise Rejected(f"{file} is in no format of an example", hint)


def _of_json(value: Any) -> Any:
    """Return a tensor, or tensors by name; of ``{"instances": [...]}``, each element becomes a row of the batch."""
    if not (isinstance(value, dict) and value.keys() == {"instances"}):
        return {key: np.asarray(item) for key, item in value.items()} if isinstance(value, dict) else np.asarray(value)
    rows = value["instances"]
    if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        return {key: np.asarray([row[key] for row in rows]) for key in rows[0]}
    return np.asarray(rows)


def _example(file: Path, value: Any, names: Sequence[str], floats: torch.dtype, required: int) -> Example:
    accepted = f"the model takes {', '.join(names)}"
    items = value
    if isinstance(value, Mapping):
        if unknown := [key for key in value if key not in names]:
            raise Rejected(f"{file} has the input {unknown[0]!r}, and {accepted}")
        items = [value[name] for name in names if name in value]
        if [name for name in names if name in value] != list(names[: len(value)]):
            missing = next(name for name in names if name not in value)
            raise Rejected(f"{file} lacks the input {missing!r}; {accepted}", "give all inputs before the last one")
    elif not isinstance(value, list):
        items = [value]
    if not required <= len(items) <= len(names):
        example = ", ".join(f"{name}={name}" for name in names[: max(required, 2)])
        raise Rejected(
            f"{file} has {len(items)} {'input' if len(items) == 1 else 'inputs'}, and {accepted}",
            f"np.savez('example.npz', {example}) saves several by name" if required > 1 else "",
        )
    return tuple(_tensor(file, item, floats) for item in items)


def _tensor(file: Path, value: Any, floats: torch.dtype) -> torch.Tensor:
    try:
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    except TypeError:
        raise Rejected(f"{file} has {np.asarray(value).dtype} where numbers are expected") from None
    return tensor.to(floats) if tensor.is_floating_point() else tensor
