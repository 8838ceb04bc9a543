"""The signature of an MLflow model: its input columns or its input tensor, and its parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchmar_handlers.request import BadRequest

_WHOLE: Mapping[str, int] = {"integer": 31, "long": 63}  # types of whole numbers, with their bits
_NUMBERS = (*_WHOLE, "float", "double", "boolean")
_CASTS: Mapping[str, type] = {
    "boolean": bool,
    "integer": int,
    "long": int,
    "float": float,
    "double": float,
    "string": str,
}


@dataclass(frozen=True)
class Column:
    """A column of a table; the ``name`` is empty if columns have only positions."""

    name: str
    type: str
    required: bool = True

    def number(self, value: Any, place: str) -> float:
        """Return a cell as a number; a missing number is NaN, and is an error in columns of whole numbers.

        Raises:
            BadRequest: the cell has another type.
        """
        if value is None and self.type not in _WHOLE:
            return float("nan")
        if self.type == "string":
            return number(value, place)
        fits = isinstance(value, bool) if self.type == "boolean" else isinstance(value, int | float)
        if fits and self.type in _WHOLE:
            limit = 1 << _WHOLE[self.type]
            # Infinity belongs to none of these types.
            fits = not isinstance(value, bool) and -limit <= value < limit and value == int(value)
        try:
            if fits:
                return float(value)
        except OverflowError:  # a whole number of hundreds of digits
            pass
        raise BadRequest(f"{place}: {_shown(value)} is no {self.type}")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor; -1 in ``shape`` is any size."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    def array(self, value: Any) -> np.ndarray:
        """Return JSON as an array of this type and shape.

        Raises:
            BadRequest: the value is no such array.
        """
        values = array(value)
        if self.dtype.kind in "iu" and values.dtype.kind == "f" and not bool(np.all(values == np.trunc(values))):
            raise BadRequest(f"the input has fractions, and the model takes {self.dtype}")
        if self.dtype.kind in "iu" and values.size:
            limits = np.iinfo(self.dtype)
            # As Python's numbers, which are compared exactly.
            if values.min().item() < limits.min or values.max().item() > limits.max:
                raise BadRequest(f"the input has numbers that {self.dtype} cannot hold")
        fits = len(values.shape) == len(self.shape) and all(
            expected in (-1, size) for expected, size in zip(self.shape, values.shape, strict=True)
        )
        if not fits:
            raise BadRequest(f"the input has the shape {list(values.shape)}; {list(self.shape)} is expected")
        return values.astype(self.dtype)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a request; ``default`` is passed to the model if a request does not set it."""

    name: str
    type: str
    default: Any

    def cast(self, value: Any) -> Any:
        """Return a value in this parameter's type. Raises BadRequest if it has another type."""
        kind = _CASTS.get(self.type)
        values = value if isinstance(value, list) else [value]
        no_booleans = kind is not float or not any(isinstance(item, bool) for item in values)
        if kind is None or (all(type(item) is kind for item in values) and no_booleans):
            return value
        if kind is float and no_booleans and all(isinstance(item, int | float) for item in values):
            return [float(item) for item in value] if isinstance(value, list) else float(value)
        raise BadRequest(f"the parameter {self.name} is {_shown(value)}, which is no {self.type}")


@dataclass(frozen=True)
class Signature:
    """The inputs of a model; without columns and tensors, any table or tensor."""

    columns: tuple[Column, ...] = ()
    tensors: tuple[TensorSpec, ...] = ()
    parameters: tuple[Parameter, ...] = ()

    def arguments(self, params: Any) -> dict[str, Any]:
        """Return the parameters of a request, with defaults, and without parameters that the signature does not name.

        Raises:
            BadRequest: the parameters are no object, or one has another type.
        """
        if params is not None and not isinstance(params, Mapping):
            raise BadRequest("params is no object")
        values = params or {}
        return {
            parameter.name: parameter.cast(values[parameter.name]) if parameter.name in values else parameter.default
            for parameter in self.parameters
        }


def parse(document: Any) -> Signature:
    """Return the signature in an ``MLmodel`` file's ``signature``.

    Raises:
        ValueError: the model cannot be served with this kind of signature.
    """
    if not document:
        return Signature()
    inputs = _listed(document.get("inputs"))
    parameters = tuple(
        Parameter(str(entry["name"]), str(entry.get("type") or entry.get("dtype")), entry.get("default"))
        for entry in _listed(document.get("params"))
    )
    if any(entry.get("type") == "tensor" for entry in inputs):
        tensors = [
            TensorSpec(
                str(entry.get("name") or ""),
                np.dtype(entry["tensor-spec"]["dtype"]),
                tuple(entry["tensor-spec"]["shape"]),
            )
            for entry in inputs
        ]
        if tensors[0].dtype.kind not in "biuf":
            raise ValueError(f"the model takes a tensor of the type {tensors[0].dtype}, of which torch has none")
        if len(tensors) > 1:
            names = ", ".join(tensor.name for tensor in tensors)
            raise ValueError(f"the model takes the tensors {names}; MLflow's pytorch flavour passes one")
        return Signature(tensors=tuple(tensors), parameters=parameters)
    columns = tuple(
        Column(str(entry.get("name") or ""), str(entry.get("type")), bool(entry.get("required", True)))
        for entry in inputs
    )
    if other := [column for column in columns if column.type not in (*_NUMBERS, "string")]:
        raise ValueError(f"the column {other[0].name} is {other[0].type}, of which no number is made")
    return Signature(columns=columns, parameters=parameters)


def array(value: Any) -> np.ndarray:
    """Return JSON as an array of numbers.

    Raises:
        BadRequest: the value is no array.
    """
    try:
        converted = np.array(value)
    except ValueError as error:
        raise BadRequest(f"the input is no array of one shape: {error}") from None
    if converted.dtype.kind not in "biuf":
        raise BadRequest("the input is no array of numbers")
    return converted


def number(value: Any, place: str) -> float:
    """Return a cell of a column without a type as a number; a missing cell is NaN. Raises BadRequest otherwise."""
    if value is None:
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRequest(f"{place}: {_shown(value)} is no number") from None


def _listed(value: Any) -> Sequence[Mapping[str, Any]]:
    # A JSON text inside the YAML.
    entries = json.loads(value) if isinstance(value, str) else value
    return [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
