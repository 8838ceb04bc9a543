"""The inputs and outputs of a model, read from its weights in a worker process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchmar.archive import collect_members, pack
from torchmar.errors import LoadError, TorchmarError
from torchmar.exchange import Request
from torchmar.recipe import Recipe
from torchmar.scaffolding.templates import render
from torchmar.worker import Worker


@dataclass(frozen=True)
class ModelInput:
    """One input of a model.

    Attributes:
        name: name of the input; empty: the weights have none.
        dtype: data type, such as ``float32``; empty: not known.
        shape: shape of one instance, without the dimension of the batch; a size of None is any size, None alone any
            shape.
        guessed: whether the shape is not in the weights, but was tried with the model.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    guessed: bool = False


@dataclass(frozen=True)
class ModelOutput:
    """One output of a model, computed for two inputs.

    Attributes:
        name: name in the weights, or ``output``.
        shape: shape for one instance.
        probabilities: whether the elements are probabilities of classes: not negative, with the sum 1.
        unit: whether the output is a vector of the length 1.
    """

    name: str
    shape: tuple[int, ...]
    probabilities: bool = False
    unit: bool = False


@dataclass(frozen=True)
class Signature:
    """The inputs of a model, and its outputs if it accepted an input of zeros."""

    inputs: tuple[ModelInput, ...]
    outputs: tuple[ModelOutput, ...] = ()


def describe(inputs: Sequence[ModelInput]) -> str:
    """Return the names and shapes of inputs, for a message."""
    return ", ".join(
        f"{entry.name or 'input'} {'of any shape' if entry.shape is None else [size or 'any' for size in entry.shape]}"
        for entry in inputs
    )


def read(weights: Path) -> Signature:
    """Return the inputs that the weights of a model declare, or else inputs that the model accepts.

    The weights are loaded in a worker process, as on a server.

    Raises:
        TorchmarError: the weights cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="torchmar-new-") as name:
        folder = Path(name)
        (folder / "handler.py").write_bytes(render("inspection_handler.py"))
        recipe = Recipe.model_validate(
            {"name": "inputs", "version": "1.0", "handler": "handler.py", "weights": str(weights.absolute())}
        )
        archive = pack(collect_members(recipe, folder), folder / "inputs-1.0.mar").path
        try:
            with Worker(archive) as worker:
                (answer,) = worker.predict_batch([Request(b"", headers={"describe": "True"})])
        except LoadError as error:
            raise TorchmarError(f"{weights} cannot be loaded: {_last_line(error)}", hint=error.hint) from None
    try:
        return _signature(json.loads(answer.body))
    except (ValueError, KeyError, TypeError):
        raise TorchmarError(f"{weights}: the inputs of the model cannot be read: {answer.body[:200]!r}") from None


def _signature(document: Any) -> Signature:
    inputs = [
        ModelInput(
            tensor["name"] or "",
            tensor["dtype"] or "",
            None if tensor["shape"] is None else tuple(tensor["shape"]),
            guessed=bool(tensor.get("guess")),
        )
        for tensor in document["inputs"]
    ]
    outputs = [ModelOutput(**{**output, "shape": tuple(output["shape"])}) for output in document["outputs"] or ()]
    return Signature(tuple(inputs), tuple(outputs))


def _last_line(error: LoadError) -> str:
    lines = (error.traceback or str(error)).strip().splitlines()
    return lines[-1] if lines else str(error)
