"""Attempts to quantise weights, from the fastest to the most accurate, until one agrees on the calibration inputs.

The choice among attempts sees only the inputs that calibrate. Those that judge the variant remain unseen, or the best
of several attempts would pass by chance more often than the gate allows.
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
"""The inputs of one call by their names, with the dimension of the batch."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Inputs that calibrate int8 weights, and requirements that hold for them.

    Attributes:
        inputs: that calibrate, at least one; none of them judges the variant.
        required: what must hold on these inputs; the first attempt that meets it is taken.
        kind: of the model.
        threads: of the engine.
        seconds: after which no other attempt is started.
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
        title: as it is shown, such as ``mixed preset``.
        make: writes the weights, to a path in an empty folder, and what is beside them.
        dtype: that the layers without int8 compute with, as an option of the handler; None: float32.
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
        kinds: of its operations in ONNX or OpenVINO, in an order of computation.
    """
    attention = [place for place, kind in enumerate(kinds) if kind in _ATTENTION]
    products = [place for place, kind in enumerate(kinds) if kind in _PRODUCTS]
    convolutions = sum(kind in _CONVOLUTIONS for kind in kinds)
    return bool(attention and products) and attention[0] < products[-1] and len(products) > convolutions


def check_inputs(inputs: Sequence[Captured]) -> None:
    """Check that there are inputs to calibrate with.

    Raises:
        NotApplicable: there are none.
    """
    if not inputs:
        raise NotApplicable("there are no inputs for the calibration: give --data FOLDER")


def calibration(
    source: Source, inputs: Sequence[Captured], required: Sequence[str], handler: str, seconds: float
) -> Calibration:
    """Return what calibrates the weights of an archive.

    Args:
        source: the original.
        inputs: recorded ones, which its converted model takes.
        required: what must hold, as the user gave it.
        handler: of the archive, as its manifest names it.
        seconds: after which no other attempt is started.
    """
    kind = requirements.kind_of(handler, source.weights.options)
    return Calibration(
        inputs=[_arrays(source, each) for each in inputs],
        required=requirements.required(required, kind),
        kind=kind,
        threads=source.weights.threads,
        seconds=seconds,
    )


def check_kinds(kinds: Collection[str], weighted: Collection[str], quantised: Collection[str]) -> None:
    """Check that int8 can make a model faster.

    Args:
        kinds: of its operations.
        weighted: kinds that have weights which int8 makes faster.
        quantised: kinds that only a model with int8 weights has.

    Raises:
        NotApplicable: there is nothing to quantise, or it is quantised already.
    """
    if not set(kinds) & set(weighted):
        raise NotApplicable("the model has no convolution and no product of matrices")
    if set(kinds) & set(quantised):
        raise NotApplicable("the original is quantised already")


def _arrays(source: Source, each: Captured) -> dict[str, np.ndarray]:
    """Return the tensors of an input as arrays, by the names that the converted model has for them.

    A model that takes only one number of rows gets the rows repeated, as many as it takes.
    """
    from torchmar_handlers import weights as handlers_weights

    if each.rows and (fixed := handlers_weights.fixed_rows(source.module)):
        (each,) = batches([each], fixed)
    return {
        name: tensor.detach().cpu().numpy()
        for name, tensor in zip(source.names_of(each), each.tensors or (), strict=True)
    }


def first_that_agrees(
    attempts: Sequence[Attempt],
    target: Path,
    answers: Callable[[Path, str | None], list[Outputs]],
    baseline: Sequence[Outputs],
    calibration: Calibration,
) -> tuple[Attempt, str]:
    """Write the weights of the first attempt that agrees; if none does, of the one with the largest cosine.

    Args:
        attempts: at least one; the first is the fastest to run.
        target: of the weights.
        answers: returns the outputs of weights, computed with a `dtype`, for the calibration inputs.
        baseline: the outputs of the original for them, with the dimension of the batch.
        calibration: what must hold, and for how long attempts are made.

    Returns:
        The attempt, and what it is in words.
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
    rows = [next((len(values) for values in each.values() if values.ndim), None) for each in baseline]
    ours, separate = agreement.by_instance(baseline, names, rows)
    theirs, _ = agreement.by_instance(outputs, names, rows)
    if len(ours) != len(theirs):  # outputs of other shapes, which have other numbers of rows
        return gate.judge(baseline, outputs, names, calibration.required, calibration.kind)
    return gate.judge(ours, theirs, separate, calibration.required, calibration.kind)
