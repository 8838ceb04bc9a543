"""The agreement of two models: their outputs and explanations for one input, compared; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchmar.optimizing.requirements import TENSORS, Classes, Kind
from torchmar.optimizing.results import Verdict

if TYPE_CHECKING:
    import numpy as np

FLOOR = 0.01
"""Relative errors are relative to at least this share of the largest number that the output has for any input."""

Outputs = Mapping[str, "np.ndarray[Any, Any]"]
"""The outputs of a model for one input, by their names, without the batch dimension."""


@dataclass(frozen=True)
class Compared:
    """The agreement on one input; ``label``: classes of the original and the variant, the former's lead."""

    name: str
    cosine: float
    relative: float
    relative_output: str
    labels: float | None
    label: tuple[int, int, float] | None
    changed: str


def by_instance(
    outputs: Sequence[Outputs], names: Sequence[str], rows: Sequence[int | None]
) -> tuple[list[Outputs], list[str]]:
    """Return the outputs of calls split into those of their instances, without the batch dimension, with their names.

    Args:
        outputs: outputs by name, a mapping for each call of the model.
        names: names of the calls' inputs.
        rows: number of instances of each call; None: the call has no batch, and is not split. Neither are calls whose
            outputs have another number of rows.
    """
    separate: list[Outputs] = []
    separate_names: list[str] = []
    for call_outputs, name, count in zip(outputs, names, rows, strict=True):
        if count is None or any(values.ndim == 0 or len(values) != count for values in call_outputs.values()):
            separate.append(call_outputs)
            separate_names.append(name)
            continue
        for row in range(count):
            separate.append({output: values[row] for output, values in call_outputs.items()})
            separate_names.append(name if count == 1 else f"{name} (row {row + 1})")
    return separate, separate_names


def largest_numbers(baseline: Sequence[Outputs]) -> dict[str, float]:
    """Return the largest absolute number of each output over all inputs."""
    import numpy as np

    scales: dict[str, float] = {}
    for outputs in baseline:
        for name, values in outputs.items():
            if values.dtype.kind == "f" and values.size:
                largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
                scales[name] = max(scales.get(name, 0.0), largest)
    return scales


def flaw(original: Outputs, variant: Outputs, name: str) -> tuple[Verdict, str] | None:
    """Return the reason why two outputs cannot be compared; None: they can."""
    import numpy as np

    if set(original) != set(variant):
        return Verdict.REJECTED, f"its outputs are {', '.join(sorted(variant))}, not {', '.join(sorted(original))}"
    for output, values in variant.items():
        if values.shape != original[output].shape:
            return Verdict.REJECTED, f"{output!r} for {name} has the shape {values.shape}, not {original[output].shape}"
        if values.dtype != original[output].dtype:
            return Verdict.REJECTED, f"{output!r} is of the type {values.dtype}, not {original[output].dtype}"
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            count = values.size - int(np.isfinite(values).sum())
            note = "" if np.isfinite(original[output]).all() else "; the original's, too"
            return Verdict.REJECTED, f"{count} of {values.size} numbers of {output!r} for {name} are not finite{note}"
    for output, values in original.items():
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            return Verdict.UNDECIDED, (
                f"the original's own {output!r} for {name} is not finite, so that nothing can be compared with it: "
                "leave this input out"
            )
    return None


def compare(original: Outputs, variant: Outputs, name: str, kind: Kind, scales: Mapping[str, float]) -> Compared:
    """Compare the outputs of two models for one input.

    Args:
        original: outputs of the original.
        variant: outputs of the variant, without a `flaw`.
        name: name of the input.
        kind: kind of the model.
        scales: `largest_numbers` of the original's outputs.
    """
    import numpy as np

    cosine, relative, relative_output, changed = 1.0, 0.0, "", ""
    for output, values in original.items():
        if values.dtype.kind != "f":
            changed = changed or ("" if np.array_equal(values, variant[output]) else repr(output))
            continue
        if not values.size:
            continue
        left, right = values.astype(np.float64).ravel(), variant[output].astype(np.float64).ravel()
        scores = _scores(output, original, kind)
        cosine = min(cosine, _cosine(_centred(values, scores), _centred(variant[output], scores)))
        difference = float(np.abs(left - right).max())
        scale = max(float(np.abs(left).max()), FLOOR * scales[output])
        error = difference / scale if scale else (math.inf if difference else 0.0)
        if error > relative or not relative_output:
            relative, relative_output = error, output
    labels, label = _labels(original, variant, kind)
    if labels is not None and changed:
        labels = 0.0
    return Compared(name, cosine, relative, relative_output, labels, label, changed)


def _scores(output: str, outputs: Outputs, kind: Kind) -> Classes | None:
    """Return the place of the classes in an output, if it has scores of several classes."""
    if kind.classes is None or output != _main(outputs, kind) or outputs[output].ndim == 0:
        return None
    # The scores of two classes minus their mean are a number and its negative, whose cosine is always 1 or -1.
    return kind.classes if outputs[output].shape[kind.classes.axis] > 2 else None


def _main(outputs: Outputs, kind: Kind) -> str | None:
    return next((name for name in kind.main if name in outputs), next(iter(outputs), None))


def _centred(values: np.ndarray[Any, Any], scores: Classes | None) -> np.ndarray[Any, Any]:
    import numpy as np

    values = values.astype(np.float64)
    centred: np.ndarray[Any, Any] = values if scores is None else values - values.mean(scores.axis, keepdims=True)
    return centred.ravel()


def _cosine(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    largest = [float(abs(values).max()) for values in (left, right)]
    if not all(largest):
        return float(not any(largest))
    left, right = left / largest[0], right / largest[1]  # otherwise squares of large numbers would overflow
    return min(1.0, float(left @ right) / math.sqrt(float(left @ left) * float(right @ right)))


def _labels(original: Outputs, variant: Outputs, kind: Kind) -> tuple[float | None, tuple[int, int, float] | None]:
    """Return the share of equal labels, and both labels at the first place where they differ.

    With the labels comes the lead: how much higher the original's score of its own label was than that of the other.
    """
    classes = kind.classes or (Classes(axis=-1, per_input=False) if kind is TENSORS else None)
    output = _main(original, kind)
    if classes is None or output is None or original[output].dtype.kind != "f" or not original[output].size:
        return None, None
    left, right = (_most_probable(values, classes).ravel() for values in (original[output], variant[output]))
    equal = left == right
    if equal.all():
        return 1.0, None
    place = int(equal.argmin())
    labels = int(left[place]), int(right[place])
    return float(equal.mean()), (*labels, _lead(original[output], classes, place, *labels))


def _most_probable(values: np.ndarray[Any, Any], classes: Classes) -> np.ndarray[Any, Any]:
    import numpy as np

    if values.ndim == 0 or values.shape[classes.axis] == 1:
        return np.asarray(values > classes.threshold)
    return np.asarray(values.argmax(classes.axis))


def _lead(values: np.ndarray[Any, Any], classes: Classes, place: int, label: int, other: int) -> float:
    import numpy as np

    if values.ndim == 0 or values.shape[classes.axis] == 1:
        return abs(float(values.ravel()[place]) - classes.threshold)
    scores = np.moveaxis(values, classes.axis, -1).reshape(-1, values.shape[classes.axis])[place]
    return float(scores[label]) - float(scores[other])


def rank_agreement(original: np.ndarray[Any, Any], variant: np.ndarray[Any, Any]) -> float:
    """Return the rank correlation of two explanations of an input: Spearman's, with mean ranks of equal values.

    Spearman, The Proof and Measurement of Association between Two Things, American Journal of Psychology 15, 1904.

    Args:
        original: attributions of the original.
        variant: attributions of the variant, of the same shape.

    Returns:
        From -1 to 1. If both are constant, 1; if only one is constant or a value is not finite, 0.

    Raises:
        ValueError: the shapes differ.
    """
    import numpy as np

    if original.shape != variant.shape:
        raise ValueError(f"attributions of the shapes {original.shape} and {variant.shape}")
    if not (np.isfinite(original).all() and np.isfinite(variant).all()):
        return 0.0
    ranks = [_ranks(values.ravel()) for values in (original, variant)]
    centred = [values - values.mean() for values in ranks]
    lengths = [math.sqrt(float(values @ values)) for values in centred]
    if not all(lengths):
        return float(not any(lengths))
    return max(-1.0, min(1.0, float(centred[0] @ centred[1]) / (lengths[0] * lengths[1])))


def _ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: np.ndarray[Any, Any] = (np.cumsum(counts) - (counts - 1) / 2)[places.ravel()]
    return means
