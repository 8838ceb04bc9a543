"""The gate: whether the answers of a variant agree closely enough with the original's; pure.

An output with a number that is not finite, or of another shape, is never accepted, whatever the requirements. With too
few inputs to show a requirement with 95 % confidence, nothing is accepted, see `torchmar.optimizing.requirements`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchmar.load.statistics import share_interval
from torchmar.optimizing import split
from torchmar.optimizing.agreement import Compared, Outputs, compare, flaw, largest_numbers
from torchmar.optimizing.requirements import CONFIDENCE, Kind, Measure, Requirement, needed
from torchmar.optimizing.results import Agreement, Verdict


@dataclass(frozen=True)
class Metric:
    """The result of the user's own check; a greater value is better, unless ``lower_is_better``."""

    value: float
    lower_is_better: bool = False

    def loss(self, baseline: Metric) -> float:
        """Return how much worse it is than the original's result, relative to that; negative: it is better."""
        worse = self.value - baseline.value if self.lower_is_better else baseline.value - self.value
        return worse / abs(baseline.value) if baseline.value else (math.inf if worse > 0 else min(worse, 0.0))


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict of the gate, with its reason.

    Attributes:
        verdict: `Verdict.REJECTED` or `Verdict.UNDECIDED`; None: the variant is accepted.
        reason: reason in one sentence, which names the worst input of a rejection.
        agreement: measures of agreement; None: the outputs cannot be compared.
    """

    verdict: Verdict | None
    reason: str
    agreement: Agreement | None

    @property
    def accepted(self) -> bool:
        """Whether the variant may be chosen."""
        return self.verdict is None


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
        baseline: outputs of the original, one mapping for each held-out input, see `agreement.by_instance`.
        outputs: outputs of the variant, in the same order.
        names: names of the inputs for messages.
        required: requirements of agreement.
        kind: kind of the model.
        explanations: rank correlations of the attributions, by the name of the input, see
            `agreement.rank_agreement`; None: the variant has no gradients, so that its explanations are those of the
            original.
        metrics: results of the user's own check for the original and the variant; None: there is no check.

    Raises:
        ValueError: the sequences differ in length.
    """
    compared: list[Compared] = []
    scales = largest_numbers(baseline)
    for original, variant, name in zip(baseline, outputs, names, strict=True):
        if fault := flaw(original, variant, name):
            return Judgement(verdict=fault[0], reason=fault[1], agreement=None)
        compared.append(compare(original, variant, name, kind, scales))
    if not compared:
        return Judgement(verdict=Verdict.UNDECIDED, reason=_too_few(0, required, kind), agreement=None)
    if not any(baseline):  # without outputs, every variant would agree
        return Judgement(verdict=Verdict.UNDECIDED, reason="the model returns nothing to compare", agreement=None)
    agreement = _agreement(compared, explanations, metrics)
    rejections: list[str] = []
    doubts: list[str] = []
    for requirement in required:
        failure, certain = _failure(requirement, compared, explanations, metrics, kind)
        if failure:
            (rejections if certain else doubts).append(failure)
    # Outputs that are not numbers have no cosine: any difference there is rejected, whatever the requirements.
    changed_results = [] if _requires(required, Measure.LABELS) else [result for result in compared if result.changed]
    if changed_results:
        rejections.append(f"{changed_results[0].changed} for {changed_results[0].name} is different")
    if rejections:
        return Judgement(verdict=Verdict.REJECTED, reason="; ".join(rejections), agreement=agreement)
    if len(compared) < max((needed(requirement, kind) for requirement in required), default=1):
        reason = "; ".join([_too_few(len(compared), required, kind), *doubts])
        return Judgement(verdict=Verdict.UNDECIDED, reason=reason, agreement=agreement)
    return Judgement(verdict=None, reason=_summary(compared), agreement=agreement)


def _agreement(
    compared: Sequence[Compared], explanations: Mapping[str, float] | None, metrics: tuple[Metric, Metric] | None
) -> Agreement:
    return Agreement(
        inputs=len(compared),
        labels=_share(compared),
        cosine=min(result.cosine for result in compared),
        relative_error=max(result.relative for result in compared),
        worst_input=max(compared, key=lambda result: result.relative).name,
        explanations=min(explanations.values()) if explanations else None,
        metric=metrics[1].value if metrics else None,
    )


def _share(compared: Sequence[Compared]) -> float | None:
    shares = [result.labels for result in compared if result.labels is not None]
    return math.fsum(shares) / len(shares) if shares else None


def _failure(
    requirement: Requirement,
    compared: Sequence[Compared],
    explanations: Mapping[str, float] | None,
    metrics: tuple[Metric, Metric] | None,
    kind: Kind,
) -> tuple[str, bool]:
    """Return the reason why a requirement is not met, or an empty text, and whether so few inputs suffice to tell."""
    measure, bound = requirement.measure, requirement.bound
    if measure is Measure.LABELS:
        return _labels_failure(requirement, compared, kind)
    if measure is Measure.COSINE:
        worst = min(compared, key=lambda comparison: comparison.cosine)
        is_met, text = worst.cosine >= bound, f"the cosine for {worst.name} is {worst.cosine:.4g}"
    elif measure is Measure.RELATIVE:
        worst = max(compared, key=lambda comparison: comparison.relative)
        is_met = worst.relative <= bound
        text = f"{worst.relative_output!r} for {worst.name} differs by {_percent(worst.relative)} of its largest number"
    elif measure is Measure.EXPLANATIONS:
        name, value = min((explanations or {}).items(), key=lambda item: item[1], default=("", 1.0))
        is_met, text = value >= bound, f"the explanations of {name} have a rank correlation of {value:.3g}"
    else:
        before, after = metrics or (Metric(0.0), Metric(0.0))
        loss = after.loss(before)
        is_met, text = loss <= bound, f"the check returned {after.value:g}, and {before.value:g} for the original"
    return ("" if is_met else f"{text}; {requirement} is required"), True


def _labels_failure(requirement: Requirement, compared: Sequence[Compared], kind: Kind) -> tuple[str, bool]:
    share = _share(compared)
    if share is None:
        return f"its outputs have no labels; {requirement} is required", True
    if share >= requirement.bound:
        return "", True
    worst = max(compared, key=lambda comparison: comparison.label[2] if comparison.label else -math.inf)
    single = kind.classes is not None and kind.classes.per_input
    text, certain = f"{_percent(share)} of the labels agree", True
    if single:
        count = sum(comparison.labels == 1.0 for comparison in compared)
        interval = share_interval(count, len(compared))
        ends = f"{_percent(interval.low)} to {_percent(interval.high)} with 95 % confidence"
        text = f"the labels of {count} of {len(compared)} inputs agree, {_percent(share)} ({ends})"
        # With few inputs, a different label may be chance, although the required share is met.
        too_small = len(compared) < needed(requirement, kind)
        certain = not too_small or _chance(len(compared) - count, len(compared), requirement.bound) < 1 - CONFIDENCE
    example = ""
    if worst.label:
        label, other, lead = worst.label
        example = f"; {worst.name} has class {other} in place of {label}, whose score was higher by {lead:.2g}"
    return f"{text}{example}; {requirement} is required", certain


def _chance(different: int, total: int, share: float) -> float:
    """Return the binomial probability of at least ``different`` unequal labels if a share of all labels is equal."""
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


def _summary(compared: Sequence[Compared]) -> str:
    share = _share(compared)
    labels = "" if share is None else f"{_percent(share)} of the labels agree, "
    relative = max(result.relative for result in compared)
    cosine = min(result.cosine for result in compared)
    count = f"{len(compared)} inputs"
    return f"{labels}the smallest cosine is {cosine:.4g}, the largest relative error {_percent(relative)}, on {count}"


def _percent(value: float) -> str:
    if not math.isfinite(value):
        return "more than 100,000 %"
    text = f"{100 * value:.3g}"
    # A share just below 1 must not read as 100 %.
    return f"{text if text != '100' or value == 1 else '99.9'} %"
