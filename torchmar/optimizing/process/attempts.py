"""Attempts to quantise weights, from the fastest to the most accurate, until the answers for calibration inputs agree.

The choice among attempts uses only the calibration inputs. The inputs that judge the variant remain unseen: otherwise
the best of several attempts would pass by chance more often than the gate allows.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torchmar.optimizing import agreement, gate, requirements
from torchmar.optimizing.agreement import Outputs
from torchmar.optimizing.process.captured import Captured, batches
from torchmar.optimizing.process.jobs import NotApplicable
from torchmar.optimizing.process.source import Source
from torchmar.optimizing.requirements import Kind, Requirement
from torchmar.optimizing.results import Verdict

Arrays = Mapping[str, np.ndarray]
"""The inputs of one call, by their names, with the batch dimension."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Inputs that calibrate int8 weights, and requirements for the answers to them.

    Attributes:
        inputs: calibration inputs, at least one; none of them judges the variant.
        required: requirements on these inputs; the first attempt that meets them is used.
        kind: kind of the model.
        threads: number of threads of the engine.
        seconds: time after which no further attempt starts.
    """

    inputs: Sequence[Arrays]
    required: Sequence[Requirement]
    kind: Kind
    threads: int
    seconds: float


@dataclass(frozen=True)
class Attempt:
    """One way to quantise.

    Attributes:
        title: its name in reports, such as ``mixed preset``.
        make: function that writes the weights to a path in an empty folder, with further files beside them.
        dtype: type in which the layers without int8 compute, as an option of the handler; None: float32.
    """

    title: str
    make: Callable[[Path], None]
    dtype: str | None = None


_ATTENTION = frozenset({"Softmax", "SoftMax", "Attention", "MultiHeadAttention", "ScaledDotProductAttention"})
_PRODUCTS = frozenset({"MatMul", "Gemm"})
_CONVOLUTIONS = frozenset({"Conv", "Convolution", "GroupConvolution"})


def is_transformer(kinds: Sequence[str]) -> bool:
    """Return whether a model is a transformer: products of matrices follow a softmax, and outnumber convolutions.

    Args:
        kinds: kinds of its operations in ONNX or OpenVINO, in an order of computation.
    """
    attention = [place for place, kind in enumerate(kinds) if kind in _ATTENTION]
    products = [place for place, kind in enumerate(kinds) if kind in _PRODUCTS]
    convolutions = sum(kind in _CONVOLUTIONS for kind in kinds)
    return bool(attention and products) and attention[0] < products[-1] and len(products) > convolutions


def check_inputs(inputs: Sequence[Captured]) -> None:
    """Check that there are inputs for the calibration.

    Raises:
        NotApplicable: there are no inputs.
    """
    if not inputs:
        raise NotApplicable("there are no inputs for the calibration: give --data FOLDER")


def calibration(
    source: Source, inputs: Sequence[Captured], required: Sequence[str], handler: str, seconds: float
) -> Calibration:
    """Return the calibration for the weights of an archive.

    Args:
        source: the original.
        inputs: recorded inputs, which the converted model accepts.
        required: requirements of agreement, as the user gave them.
        handler: handler of the archive, as its manifest names it.
        seconds: time after which no further attempt starts.
    """
    kind = requirements.kind_of(handler, source.weights.options)
    return Calibration(
        inputs=[_arrays(source, instance) for instance in inputs],
        required=requirements.required(required, kind),
        kind=kind,
        threads=source.weights.threads,
        seconds=seconds,
    )


def check_kinds(kinds: Collection[str], weighted: Collection[str], quantised: Collection[str]) -> None:
    """Check that int8 can make a model faster.

    Args:
        kinds: kinds of its operations.
        weighted: kinds of operations with weights that int8 makes faster.
        quantised: kinds that only a model with int8 weights has.

    Raises:
        NotApplicable: the model has nothing to quantise, or is quantised already.
    """
    if not set(kinds) & set(weighted):
        raise NotApplicable("the model has no convolution and no product of matrices")
    if set(kinds) & set(quantised):
        raise NotApplicable("the original is quantised already")


def _arrays(source: Source, instance: Captured) -> dict[str, np.ndarray]:
    """Return the tensors of an input as arrays, by their names in the converted model.

    If a model accepts only one number of rows, the rows are repeated up to this number.
    """
    from torchmar_handlers import weights as handlers_weights

    if instance.rows and (fixed := handlers_weights.fixed_rows(source.module)):
        (instance,) = batches([instance], fixed)
    return {
        name: tensor.detach().cpu().numpy()
        for name, tensor in zip(source.names_of(instance), instance.tensors or (), strict=True)
    }


def first_that_agrees(
    attempts: Sequence[Attempt],
    target: Path,
    answers: Callable[[Path, str | None], list[Outputs]],
    baseline: Sequence[Outputs],
    calibration: Calibration,
) -> tuple[Attempt, str]:
    """Write the weights of the first attempt whose answers agree; if none do, of the one with the largest cosine.

    Args:
        attempts: attempts, at least one; the weights of the first run fastest.
        target: path for the weights.
        answers: returns the outputs of weights for the calibration inputs, computed in a `dtype`.
        baseline: outputs of the original for these inputs, with the batch dimension.
        calibration: the requirements, and the time limit of the attempts.

    Returns:
        The attempt, and its description in words.
    """
    started = time.monotonic()
    best: tuple[float, Attempt] | None = None
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".attempts-") as folder:
        for number, attempt in enumerate(attempts, 1):
            if best and time.monotonic() - started > calibration.seconds:
                break
            work = Path(folder, str(number))
            work.mkdir()
            attempt.make(work / target.name)
            judgement = _judged(baseline, answers(work / target.name, attempt.dtype), calibration)
            cosine = judgement.agreement.cosine if judgement.agreement else -1.0
            agrees = judgement.verdict is not Verdict.REJECTED
            if agrees or best is None or cosine > best[0]:
                best = (cosine, attempt)
                for file in work.iterdir():
                    shutil.move(file, target.with_name(file.name))
            if agrees:
                return attempt, attempt.title
        assert best is not None
        count = "the only attempt in time" if number == 1 else f"the best of {number} attempts"
        return best[1], f"{best[1].title}: {count}, and its answers differ even for the inputs that calibrated it"


def _judged(baseline: Sequence[Outputs], outputs: Sequence[Outputs], calibration: Calibration) -> gate.Judgement:
    names = [f"calibration input {place}" for place in range(1, len(baseline) + 1)]
    rows = [next((len(values) for values in output.values() if values.ndim), None) for output in baseline]
    expected, separate = agreement.by_instance(baseline, names, rows)
    actual, _ = agreement.by_instance(outputs, names, rows)
    if len(expected) != len(actual):  # outputs of other shapes, with other numbers of rows
        return gate.judge(baseline, outputs, names, calibration.required, calibration.kind)
    return gate.judge(expected, actual, separate, calibration.required, calibration.kind)
