"""A process that compares exported models with their source: ``python -m torchmar.conversion.export_check``.

It loads them with the handlers' own loader, as a worker does, but without their source.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from torchmar.conversion.exporters import cases, failure
from torchmar.conversion.exporters.model import tensors
from torchmar.conversion.process import Rejected, gap, main

# Tolerances relative to the largest output, or to 1, by the type in which the source computes.
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def check(job: dict[str, Any]) -> dict[str, Any]:
    """Load exported models and compare their answers.

    Args:
        job: ``cases`` (the file) and ``targets``: ``to``, ``path`` and ``bounds`` of the dimensions of each.

    Returns:
        For each target: ``difference`` (the largest), ``compared`` (the number of cases) and ``sizes`` (those of each
        dimension that were compared); or the ``message`` of its rejection.
    """
    compared = cases.load(Path(job["cases"]))
    results: dict[str, Any] = {}
    for target in job["targets"]:
        try:
            results[target["to"]] = _compare(Path(target["path"]), compared, target["bounds"])
        except Rejected as rejected:
            results[target["to"]] = {"message": str(rejected), "hint": rejected.hint}
    return results


def _compare(path: Path, compared: Sequence[cases.Case], bounds: Mapping[str, Any]) -> dict[str, Any]:
    weights = importlib.import_module("torchmar_handlers.weights")
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = weights.load(path.parent, path.name, None, torch.device("cpu"), {}, threads=1)
        except weights.LoadError as error:
            raise Rejected(f"it was written, and cannot be loaded: {error}") from None
        fitting = [case for case in compared if _is_within(case, bounds)]
        if not fitting:
            raise Rejected("the example is not within the sizes that it takes")
        largest = 0.0
        # Then the first case again: state that an answer leaves in the model must not change the next answer.
        for case in (*fitting, fitting[0]):
            largest = max(largest, _difference(model, case))
    sizes = {name: sorted({case.sizes[name] for case in fitting}) for name in fitting[0].sizes}
    return {"difference": largest, "compared": len(fitting), "sizes": sizes}


def _difference(model: torch.nn.Module, case: cases.Case) -> float:
    """Return the largest difference of a case.

    Raises:
        Rejected: the difference is too large.
    """
    try:
        with torch.no_grad():
            actual = tensors(model(*case.inputs))
    except Exception as error:  # any exception of the model, or of its runtime
        raise Rejected(f"it does not take {case.name}, which its source takes: {failure.reason(error)}") from None
    shapes = [[tuple(tensor.shape) for tensor in answer] for answer in (case.expected, actual)]
    if shapes[0] != shapes[1]:
        raise Rejected(
            f"it answers {case.name} with tensors of the shapes {shapes[1]}, and its source with {shapes[0]}"
        )
    types = {tensor.dtype for tensor in (*case.inputs, *case.expected)}
    tolerance = max(TOLERANCES.get(kind, 0.0) for kind in types)
    largest = 0.0
    for expected, answer in zip(case.expected, actual, strict=True):
        largest = max(largest, gap(_array(expected), _array(answer)))
    if not largest <= tolerance:
        raise Rejected(f"it answers {case.name} differently: by {largest:.1e} of the largest output, not {tolerance:g}")
    return largest


def _array(tensor: torch.Tensor) -> Any:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def _is_within(case: cases.Case, bounds: Mapping[str, Any]) -> bool:
    for name, size in case.sizes.items():
        low, high, factor = bounds.get(name, (0, None, 1))
        if size < low or (high is not None and size > high) or size % factor:
            return False
    return True


if __name__ == "__main__":
    main(check)
