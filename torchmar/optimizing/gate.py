"""The gate: whether the answers of a variant agree with the original's as far as they must; pure.

A requirement is a bound for a measure of agreement, over inputs that the variant was not calibrated with:

============= ======== ==============================================================================================
measure       bound    meaning
============= ======== ==============================================================================================
labels, top1  at least the share of inputs with the same most probable class; of pixels or tokens the mean share
cos           at least the smallest cosine of both outputs of an input; of the scores of classes less their mean,
                       on which no softmax depends
relative      at most  the largest difference of two numbers, relative to the largest number of the original's output
explanations  at least the smallest rank correlation of both explanations of an input
check         at most  by how much the user's own metric is worse than the original's, relative to it
============= ======== ==============================================================================================

An output that is not a finite number, or has another shape, is never accepted, whatever the requirements.

Few inputs prove little. If a share q of all inputs agreed, then n of n chosen ones would with probability q^n; so that
n of n show the share with 95 % confidence only if q^n <= 0.05, which is 299 inputs for 99 % (the exact form of the rule
of three; Hanley and Lippman-Hand, If Nothing Goes Wrong, Is Everything All Right?, JAMA 249, 1983). The same holds for
the smallest or largest value of a measure: that of 59 inputs is a bound for 95 % of all (Wilks, Determination of Sample
Sizes for Setting Tolerance Limits, Annals of Mathematical Statistics 12, 1941). With fewer inputs nothing is accepted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from torchmar.errors import TorchmarError
from torchmar.load.statistics import share_interval
from torchmar.optimizing import split
from torchmar.optimizing.results import Agreement, Verdict

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
COVERED = 0.95
"""The share of all inputs that a smallest or largest value holds for."""
FLOOR = 0.01
"""What errors are relative to is at least this share of the largest number of the output for any input."""
EXAMPLE = "labels>=0.99; also cos>=0.999, relative<=0.05, explanations>=0.9 and check<=0.01"

Outputs = Mapping[str, "np.ndarray[Any, Any]"]
"""What a model returned for one input, by the names of its outputs, without the dimension of the batch."""


class Measure(str, Enum):
    """A measure of agreement; the value is its name in requirements."""

    LABELS = "labels"
    COSINE = "cos"
    RELATIVE = "relative"
    EXPLANATIONS = "explanations"
    CHECK = "check"


_SYNONYMS = {"top1": Measure.LABELS, "cosine": Measure.COSINE}
_AT_MOST = frozenset({Measure.RELATIVE, Measure.CHECK})
_NAMES = "|".join([*(measure.value for measure in Measure), *_SYNONYMS])
_REQUIREMENT = re.compile(rf"\s*({_NAMES})\s*(>=|<=)\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(%?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Requirement:
    """A bound for a measure; written as ``labels>=0.99``."""

    measure: Measure
    bound: float

    def __str__(self) -> str:
        return f"{self.measure.value}{'<=' if self.measure in _AT_MOST else '>='}{self.bound:g}"


@dataclass(frozen=True)
class Classes:
    """Where the classes of an output are.

    Attributes:
        axis: of the classes in the output of one input.
        threshold: where there is one number in place of classes, above which it means yes.
        per_input: whether an input has one class, not one for each pixel or token.
    """

    axis: int = 0
    threshold: float = 0.0
    per_input: bool = True


@dataclass(frozen=True)
class Kind:
    """What the numbers of a model mean.

    Attributes:
        name: with its article, such as ``a classifier``.
        defaults: what must hold if the user requires nothing.
        classes: None: there are none.
        main: the names of the output that has the classes, the best first; the first output if none is there.
    """

    name: str
    defaults: tuple[Requirement, ...]
    classes: Classes | None = None
    main: tuple[str, ...] = ("logits", "out", "scores")


_OF_CLASSES = (Requirement(Measure.LABELS, 0.99), Requirement(Measure.COSINE, 0.98))
CLASSIFIER = Kind("a classifier", _OF_CLASSES, Classes())
PIXELS = Kind("a classifier of pixels", _OF_CLASSES, Classes(axis=0, per_input=False))
TOKENS = Kind("a classifier of tokens", _OF_CLASSES, Classes(axis=-1, per_input=False))
EMBEDDING = Kind("an embedding", (Requirement(Measure.COSINE, 0.999),))
REGRESSION = Kind("a regression", (Requirement(Measure.RELATIVE, 0.02),))
TENSORS = Kind("a model of tensors", (Requirement(Measure.COSINE, 0.999), Requirement(Measure.RELATIVE, 0.05)))
_KINDS = {
    "image_classifier": CLASSIFIER,
    "text_classifier": CLASSIFIER,
    "tabular_classifier": CLASSIFIER,
    "image_segmenter": PIXELS,
    "token_classifier": TOKENS,
    "text_embedder": EMBEDDING,
    "tabular_regressor": REGRESSION,
}
KINDS = (CLASSIFIER, PIXELS, TOKENS, EMBEDDING, REGRESSION, TENSORS)


@dataclass(frozen=True)
class Metric:
    """What the user's own check measured; a greater value is the better one unless it says otherwise."""

    value: float
    lower_is_better: bool = False

    def loss(self, baseline: Metric) -> float:
        """Return by how much it is worse than the original's, relative to that; negative if it is better."""
        worse = self.value - baseline.value if self.lower_is_better else baseline.value - self.value
        return worse / abs(baseline.value) if baseline.value else (math.inf if worse > 0 else min(worse, 0.0))


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the gate found.

    Attributes:
        verdict: `Verdict.REJECTED` or `Verdict.UNDECIDED`; None: the variant may be chosen.
        reason: one sentence, which names the worst input of a rejection.
        agreement: None: outputs cannot be compared.
    """

    verdict: Verdict | None
    reason: str
    agreement: Agreement | None

    @property
    def accepted(self) -> bool:
        """Whether the variant may be chosen."""
        return self.verdict is None


def kind_of(handler: str, options: Mapping[str, Any] | None = None) -> Kind:
    """Return the kind of a model by its handler.

    Args:
        handler: as the recipe or the manifest names it, such as ``torchmar_handlers.image_classifier``.
        options: the section ``handler`` of the configuration.
    """
    kind = _KINDS.get(handler.partition(":")[0].rpartition(".")[2], TENSORS)
    if kind is CLASSIFIER and (options or {}).get("activation") == "none":  # it returns probabilities
        return Kind(kind.name, kind.defaults, Classes(threshold=0.5), kind.main)
    return kind


def parse(text: str) -> Requirement:
    """Return the requirement that a text such as ``labels>=0.99`` or ``top1>=99%`` stands for.

    Raises:
        TorchmarError: it is none, or can never or always be met.
    """
    match = _REQUIREMENT.fullmatch(text)
    if not match:
        bare = re.fullmatch(_NAMES, text.strip(), re.IGNORECASE)
        hint = "quotes keep > and < from the shell: --keep 'labels>=0.99'" if bare else EXAMPLE
        raise TorchmarError(f"{text!r} is no requirement of agreement", hint=hint)
    name = match[1].lower()
    measure = _SYNONYMS.get(name) or Measure(name)
    wanted = "<=" if measure in _AT_MOST else ">="
    if match[2] != wanted:
        bound = "an upper" if measure in _AT_MOST else "a lower"
        raise TorchmarError(f"{text!r}: {name} has {bound} bound", hint=f"{name}{wanted}{match[3]}{match[4]}")
    value = float(match[3]) / (100 if match[4] else 1)
    if wanted == ">=" and not 0 < value <= 1:
        raise TorchmarError(f"{text!r}: the bound of {name} is above 0 and at most 1", hint=EXAMPLE)
    return Requirement(measure, value)


def requirements(texts: Sequence[str], kind: Kind, *, check: bool = False) -> tuple[Requirement, ...]:
    """Return what must hold: what the user requires, or the defaults of the kind of model.

    Args:
        texts: as the user gave them, each one requirement or several with commas between them; they replace the
            defaults.
        kind: of the model.
        check: whether there is a check of the user's own; it may lose 1 % unless a requirement says otherwise.

    Raises:
        TorchmarError: one is none, appears twice, or is not of this kind of model.
    """
    found: dict[Measure, Requirement] = {}
    for text in (part for each in texts for part in each.split(",") if part.strip()):
        requirement = parse(text)
        if requirement.measure in found:
            raise TorchmarError(
                f"{requirement.measure.value} is required twice: {found[requirement.measure]} and {text}"
            )
        found[requirement.measure] = requirement
    if Measure.LABELS in found and kind.classes is None and kind is not TENSORS:
        raise TorchmarError(
            f"{found[Measure.LABELS]}: {kind.name} has no labels",
            hint=" and ".join(map(str, kind.defaults)) + " is its default",
        )
    if Measure.CHECK in found and not check:
        raise TorchmarError(f"{found[Measure.CHECK]}: there is no check", hint='give it with --check "python eval.py"')
    if not found:
        found = {requirement.measure: requirement for requirement in kind.defaults}
    if check:
        found.setdefault(Measure.CHECK, Requirement(Measure.CHECK, 0.01))
    return tuple(found.values())


def needed(requirement: Requirement, kind: Kind) -> int:
    """Return the least number of inputs that can show a requirement with 95 % confidence, if all of them meet it."""
    if requirement.measure in (Measure.EXPLANATIONS, Measure.CHECK):
        return 1  # the former are too slow for many inputs, and the latter has inputs of its own
    share = COVERED
    if requirement.measure is Measure.LABELS and (kind.classes is None or kind.classes.per_input):
        # No number of inputs shows a share of 1.
        share = requirement.bound if requirement.bound < 1 else 0.99
    return max(1, math.ceil(math.log(1 - CONFIDENCE) / math.log(share) - 1e-9))


def by_instance(
    outputs: Sequence[Outputs], names: Sequence[str], rows: Sequence[int | None]
) -> tuple[list[Outputs], list[str]]:
    """Return the outputs of calls as those of their instances, without the dimension of the batch, and their names.

    Args:
        outputs: one mapping for each call of the model.
        names: of the inputs of the calls.
        rows: the instances of each call; None: it has no batch, and stays as it is, as do calls whose outputs have
            other numbers of rows.
    """
    separate: list[Outputs] = []
    separate_names: list[str] = []
    for each, name, count in zip(outputs, names, rows, strict=True):
        if count is None or any(values.ndim == 0 or len(values) != count for values in each.values()):
            separate.append(each)
            separate_names.append(name)
            continue
        for row in range(count):
            separate.append({output: values[row] for output, values in each.items()})
            separate_names.append(name if count == 1 else f"{name} (row {row + 1})")
    return separate, separate_names


def judge(
    baseline: Sequence[Outputs],
    outputs: Sequence[Outputs],
    names: Sequence[str],
    required: Sequence[Requirement],
    kind: Kind,
    *,
    explanations: Mapping[str, float] | None = None,
    metrics: tuple[Metric, Metric] | None = None,
) -> Judgement:
    """Compare the outputs of a variant with those of the original, input by input.

    Args:
        baseline: the outputs of the original, one mapping for each held-out input, see `by_instance`.
        outputs: those of the variant, in the same order.
        names: of the inputs, as they are shown.
        required: what must hold.
        kind: of the model.
        explanations: the rank correlation of the attributions by the name of the input, see `rank_agreement`; None:
            the variant has no gradients, so that its explanations are those of the original.
        metrics: of the user's own check, of the original and of the variant; None: there is none.

    Raises:
        ValueError: the sequences differ in length.
    """
    compared: list[_Compared] = []
    scales = _scales(baseline)
    for ours, theirs, name in zip(baseline, outputs, names, strict=True):
        if flaw := _flaw(ours, theirs, name):
            return Judgement(verdict=flaw[0], reason=flaw[1], agreement=None)
        compared.append(_compare(ours, theirs, name, kind, scales))
    if not compared:
        return Judgement(verdict=Verdict.UNDECIDED, reason=_too_few(0, required, kind), agreement=None)
    agreement = _agreement(compared, explanations, metrics)
    rejections: list[str] = []
    doubts: list[str] = []
    for requirement in required:
        failure, certain = _failure(requirement, compared, explanations, metrics, kind)
        if failure:
            (rejections if certain else doubts).append(failure)
    # Outputs that are not numbers have no cosine: a difference there is one, whatever is required.
    if changed := [each for each in compared if each.changed] if not _requires(required, Measure.LABELS) else []:
        rejections.append(f"{changed[0].changed} for {changed[0].name} is another")
    if rejections:
        return Judgement(verdict=Verdict.REJECTED, reason="; ".join(rejections), agreement=agreement)
    if len(compared) < max((needed(requirement, kind) for requirement in required), default=1):
        reason = "; ".join([_too_few(len(compared), required, kind), *doubts])
        return Judgement(verdict=Verdict.UNDECIDED, reason=reason, agreement=agreement)
    return Judgement(verdict=None, reason=_summary(compared), agreement=agreement)


def rank_agreement(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """Return the rank correlation of two explanations of an input: Spearman's, with mean ranks of equal values.

    Spearman, The Proof and Measurement of Association between Two Things, American Journal of Psychology 15, 1904.

    Args:
        ours: the attributions of the original.
        theirs: those of the variant, of the same shape.

    Returns:
        From -1 to 1; 1 if both are constant, 0 if one is, or has a value that is not finite.

    Raises:
        ValueError: the shapes differ.
    """
    import numpy as np

    if ours.shape != theirs.shape:
        raise ValueError(f"attributions of the shapes {ours.shape} and {theirs.shape}")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return 0.0
    ranks = [_ranks(values.ravel()) for values in (ours, theirs)]
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


@dataclass(frozen=True)
class _Compared:
    """The agreement on one input; ``label`` is where it differs: of the original, of the variant, the former's lead."""

    name: str
    cosine: float
    relative: float
    relative_output: str
    labels: float | None
    label: tuple[int, int, float] | None
    changed: str


def _scales(baseline: Sequence[Outputs]) -> dict[str, float]:
    """Return the largest absolute number of each output over all inputs."""
    import numpy as np

    scales: dict[str, float] = {}
    for outputs in baseline:
        for name, values in outputs.items():
            if values.dtype.kind == "f" and values.size:
                largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
                scales[name] = max(scales.get(name, 0.0), largest)
    return scales


def _flaw(ours: Outputs, theirs: Outputs, name: str) -> tuple[Verdict, str] | None:
    """Return why two outputs cannot be compared at all; None: they can."""
    import numpy as np

    if set(ours) != set(theirs):
        return Verdict.REJECTED, f"its outputs are {', '.join(sorted(theirs))}, not {', '.join(sorted(ours))}"
    for output, values in theirs.items():
        if values.shape != ours[output].shape:
            return Verdict.REJECTED, f"{output!r} for {name} has the shape {values.shape}, not {ours[output].shape}"
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            count = values.size - int(np.isfinite(values).sum())
            also = "" if np.isfinite(ours[output]).all() else "; the original's, too"
            return Verdict.REJECTED, f"{count} of {values.size} numbers of {output!r} for {name} are not finite{also}"
    for output, values in ours.items():
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            return Verdict.UNDECIDED, (
                f"the original's own {output!r} for {name} is not finite, so that nothing can be compared with it: "
                "leave this input out"
            )
    return None


def _compare(ours: Outputs, theirs: Outputs, name: str, kind: Kind, scales: Mapping[str, float]) -> _Compared:
    import numpy as np

    cosine, relative, where, changed = 1.0, 0.0, "", ""
    for output, values in ours.items():
        if values.dtype.kind != "f":
            changed = changed or ("" if np.array_equal(values, theirs[output]) else repr(output))
            continue
        if not values.size:
            continue
        left, right = values.astype(np.float64).ravel(), theirs[output].astype(np.float64).ravel()
        scores = _scores(output, ours, kind)
        cosine = min(cosine, _cosine(_centred(values, scores), _centred(theirs[output], scores)))
        difference = float(np.abs(left - right).max())
        scale = max(float(np.abs(left).max()), FLOOR * scales[output])
        error = difference / scale if scale else (math.inf if difference else 0.0)
        if error > relative or not where:
            relative, where = error, output
    labels, label = _labels(ours, theirs, kind)
    if labels is not None and changed:
        labels = 0.0
    return _Compared(name, cosine, relative, where, labels, label, changed)


def _scores(output: str, ours: Outputs, kind: Kind) -> Classes | None:
    """Return where the classes of an output are if it has the scores of several."""
    if kind.classes is None or output != _main(ours, kind) or ours[output].ndim == 0:
        return None
    # The scores of two classes less their mean are one number and its negative, whose cosine is 1 or -1.
    return kind.classes if ours[output].shape[kind.classes.axis] > 2 else None


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
    left, right = left / largest[0], right / largest[1]  # squares of large numbers have no room in a float
    return min(1.0, float(left @ right) / math.sqrt(float(left @ left) * float(right @ right)))


def _labels(ours: Outputs, theirs: Outputs, kind: Kind) -> tuple[float | None, tuple[int, int, float] | None]:
    """Return the share of equal labels, and the two of the first place where they differ.

    With them by how much the original's score of its own label was above that of the other one.
    """
    classes = kind.classes or (Classes(axis=-1, per_input=False) if kind is TENSORS else None)
    output = _main(ours, kind)
    if classes is None or output is None or ours[output].dtype.kind != "f" or not ours[output].size:
        return None, None
    left, right = (_most_probable(values, classes).ravel() for values in (ours[output], theirs[output]))
    equal = left == right
    if equal.all():
        return 1.0, None
    place = int(equal.argmin())
    labels = int(left[place]), int(right[place])
    return float(equal.mean()), (*labels, _lead(ours[output], classes, place, *labels))


def _most_probable(values: np.ndarray[Any, Any], classes: Classes) -> np.ndarray[Any, Any]:
    import numpy as np

    if values.ndim == 0 or values.shape[classes.axis] == 1:
        return np.asarray(values > classes.threshold)
    return np.asarray(values.argmax(classes.axis))


def _lead(values: np.ndarray[Any, Any], classes: Classes, place: int, own: int, other: int) -> float:
    import numpy as np

    if values.ndim == 0 or values.shape[classes.axis] == 1:
        return abs(float(values.ravel()[place]) - classes.threshold)
    scores = np.moveaxis(values, classes.axis, -1).reshape(-1, values.shape[classes.axis])[place]
    return float(scores[own]) - float(scores[other])


def _agreement(
    compared: Sequence[_Compared], explanations: Mapping[str, float] | None, metrics: tuple[Metric, Metric] | None
) -> Agreement:
    return Agreement(
        inputs=len(compared),
        labels=_share(compared),
        cosine=min(each.cosine for each in compared),
        relative_error=max(each.relative for each in compared),
        worst_input=max(compared, key=lambda each: each.relative).name,
        explanations=min(explanations.values()) if explanations else None,
        metric=metrics[1].value if metrics else None,
    )


def _share(compared: Sequence[_Compared]) -> float | None:
    shares = [each.labels for each in compared if each.labels is not None]
    return math.fsum(shares) / len(shares) if shares else None


def _failure(
    requirement: Requirement,
    compared: Sequence[_Compared],
    explanations: Mapping[str, float] | None,
    metrics: tuple[Metric, Metric] | None,
    kind: Kind,
) -> tuple[str, bool]:
    """Return how a requirement is not met, an empty text if it is, and whether so few inputs can tell."""
    measure, bound = requirement.measure, requirement.bound
    if measure is Measure.LABELS:
        return _labels_failure(requirement, compared, kind)
    if measure is Measure.COSINE:
        worst = min(compared, key=lambda each: each.cosine)
        met, text = worst.cosine >= bound, f"the cosine for {worst.name} is {worst.cosine:.4g}"
    elif measure is Measure.RELATIVE:
        worst = max(compared, key=lambda each: each.relative)
        met = worst.relative <= bound
        text = f"{worst.relative_output!r} for {worst.name} differs by {_percent(worst.relative)} of its largest number"
    elif measure is Measure.EXPLANATIONS:
        name, value = min((explanations or {}).items(), key=lambda item: item[1], default=("", 1.0))
        met, text = value >= bound, f"the explanations of {name} have a rank correlation of {value:.3g}"
    else:
        before, after = metrics or (Metric(0.0), Metric(0.0))
        loss = after.loss(before)
        met, text = loss <= bound, f"the check returned {after.value:g}, and {before.value:g} for the original"
    return ("" if met else f"{text}; {requirement} is required"), True


def _labels_failure(requirement: Requirement, compared: Sequence[_Compared], kind: Kind) -> tuple[str, bool]:
    share = _share(compared)
    if share is None:
        return f"its outputs have no labels; {requirement} is required", True
    if share >= requirement.bound:
        return "", True
    worst = max(compared, key=lambda each: each.label[2] if each.label else -math.inf)
    single = kind.classes is not None and kind.classes.per_input
    text, certain = f"{_percent(share)} of the labels agree", True
    if single:
        count = sum(each.labels == 1.0 for each in compared)
        interval = share_interval(count, len(compared))
        ends = f"{_percent(interval.low)} to {_percent(interval.high)} with 95 % confidence"
        text = f"the labels of {count} of {len(compared)} inputs agree, {_percent(share)} ({ends})"
        # Chance makes one of few inputs another, also where the share is kept.
        few = len(compared) < needed(requirement, kind)
        certain = not few or _chance(len(compared) - count, len(compared), requirement.bound) < 1 - CONFIDENCE
    example = ""
    if worst.label:
        own, other, lead = worst.label
        example = f"; {worst.name} has class {other} in place of {own}, whose score was higher by {lead:.2g}"
    return f"{text}{example}; {requirement} is required", certain


def _chance(different: int, total: int, share: float) -> float:
    """Return the probability of at least so many different labels if a share of all labels is equal: binomial."""
    term = share**total
    smaller = 0.0
    for count in range(different):
        smaller += term
        term *= (total - count) / (count + 1) * (1 - share) / share
    return 1 - smaller


def _too_few(count: int, required: Sequence[Requirement], kind: Kind) -> str:
    strictest = max(required, key=lambda requirement: needed(requirement, kind))
    least = needed(strictest, kind)
    return (
        f"{count} held-out inputs are too few to show {strictest} with 95 % confidence, which takes {least}: give "
        f"--data FOLDER with at least {split.total_for(least)} inputs"
    )


def _requires(required: Sequence[Requirement], measure: Measure) -> bool:
    return any(requirement.measure is measure for requirement in required)


def _summary(compared: Sequence[_Compared]) -> str:
    share = _share(compared)
    labels = "" if share is None else f"{_percent(share)} of the labels agree, "
    relative = max(each.relative for each in compared)
    cosine = min(each.cosine for each in compared)
    count = f"{len(compared)} inputs"
    return f"{labels}the smallest cosine is {cosine:.4g}, the largest relative error {_percent(relative)}, on {count}"


def _percent(value: float) -> str:
    if not math.isfinite(value):
        return "more than 100,000 %"
    text = f"{100 * value:.3g}"
    # A share just below 1 must not read as 100 %.
    return f"{text if text != '100' or value == 1 else '99.9'} %"
