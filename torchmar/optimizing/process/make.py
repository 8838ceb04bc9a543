"""Make the files of a variant, by the module of its family."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torchmar.optimizing.process import captured, source
from torchmar.optimizing.process.jobs import Made, Weights

_TOLERANCE = 0.01  # relative difference that is allowed for other sizes
_FACTOR = 10.0  # or this factor of the difference of a recorded input, because int8 and bfloat16 round


def make(job: Mapping[str, Any]) -> dict[str, Any]:
    """Make a variant.

    A family is a module here, such as ``openvino``, with a function ``make_openvino(source, inputs, folder,
    **arguments)`` that returns `Made`.

    Args:
        job: ``weights``, the arguments of `Weights`; ``inputs``, a file of `captured.save`; ``places``, the indices of
            its inputs to use; ``family``; ``arguments``; ``folder``, where the files are written.

    Returns:
        `Made` as a mapping.

    Raises:
        NotApplicable: the variant is not possible for these weights.
    """
    original = source.load(Weights(**job["weights"]))
    recorded = captured.load(Path(job["inputs"]))
    inputs = [recorded[place] for place in job["places"]]
    family = job["family"]
    function = getattr(importlib.import_module(f"torchmar.optimizing.process.{family}"), f"make_{family}")
    folder = Path(job["folder"])
    made: Made = function(original, inputs, folder, **job["arguments"])
    if made.files:
        _check_sizes(original, inputs, made, folder)
    return asdict(made)


def _check_sizes(original: source.Source, inputs: Sequence[captured.Captured], made: Made, folder: Path) -> None:
    """Compare answers for input sizes that are possible, but that no recorded input has.

    Some compilers fix a size without an error, and then compute with uninitialised memory.

    Raises:
        ValueError: the answers of the files are wrong, or they have none, for a size that the original accepts.
    """
    weights = replace(
        original.weights,
        serialized_file=str(folder / made.files[0]),
        model_file=None,
        options=made.options,
        pt2=None,
    )
    variant = replace(original, module=source.model_of(weights), weights=weights)
    tolerance: float | None = None
    for example in source.other_sizes(original, inputs):
        try:
            expected = source.flat(original.call(example))
        except Exception:  # any error means that the original does not accept the size
            continue
        try:
            difference = _difference(expected, source.flat(variant.call(example)))
        except Exception as error:
            raise ValueError(f"it does not take {example.name}, as the original does: {error}") from error
        if tolerance is None:  # the first input is a recorded one, which the gate judges
            tolerance = max(_TOLERANCE, _FACTOR * difference)
        elif not difference <= tolerance:
            raise ValueError(f"its answers are wrong for {example.name}: they differ by {100 * difference:.3g} %")


def _difference(expected: Sequence[tuple[str, Any]], actual: Sequence[tuple[str, Any]]) -> float:
    """Return the largest difference of two outputs, relative to the original's largest number, where it is finite."""
    largest = 0.0
    for (_, left), (_, right) in zip(expected, actual, strict=True):
        if left.shape != right.shape:
            return math.inf
        if left.numel() and bool(left.isfinite().all()):
            scale = max(float(left.double().abs().max()), 1e-6)
            difference = float((left.double() - right.double()).abs().max()) / scale
            largest = max(largest, math.inf if math.isnan(difference) else difference)
    return largest
