"""The gate of an optimisation: judgements and their reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from torchmar.optimizing import requirements
from torchmar.optimizing.agreement import Outputs
from torchmar.optimizing.gate import Judgement, Metric, judge
from torchmar.optimizing.results import Verdict

ENOUGH = 299


def scores(count: int, classes: int = 10, seed: int = 0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [{"logits": generator.normal(size=classes).astype(np.float32)} for _ in range(count)]


def changed(baseline: Sequence[Outputs], place: int, **values: Any) -> list[dict[str, np.ndarray]]:
    copied = [dict(outputs) for outputs in baseline]
    copied[place].update(values)
    return copied


def judged(
    baseline: Sequence[Outputs],
    outputs: Sequence[Outputs],
    *keep: str,
    kind: requirements.Kind = requirements.CLASSIFIER,
    **options: Any,
) -> Judgement:
    names = [f"image-{place}.jpg" for place in range(len(baseline))]
    return judge(
        baseline, outputs, names, requirements.required(keep, kind, check="metrics" in options), kind, **options
    )


def test_equal_answers_are_accepted() -> None:
    baseline = scores(ENOUGH)
    judgement = judged(baseline, baseline, "labels>=0.99", "cos>=1", "relative<=0")
    assert judgement.accepted
    assert judgement.agreement and judgement.agreement.labels == 1.0 and judgement.agreement.relative_error == 0.0
    assert judgement.reason.startswith("100 % of the labels agree, the smallest cosine is 1")


def test_other_labels_are_rejected_with_their_number_and_an_example() -> None:
    baseline = scores(ENOUGH)
    outputs = list(baseline)
    for place in range(40, 50):
        outputs[place] = {"logits": -baseline[place]["logits"]}
    judgement = judged(baseline, outputs, "labels>=0.99")
    worst = max(range(40, 50), key=lambda place: float(np.ptp(baseline[place]["logits"])))
    first, second = (int(values[worst]["logits"].argmax()) for values in (baseline, outputs))
    lead = float(np.ptp(baseline[worst]["logits"]))
    assert judgement.verdict is Verdict.REJECTED
    assert "the labels of 289 of 299 inputs agree, 96.7 %" in judgement.reason
    assert (
        f"image-{worst}.jpg has class {second} in place of {first}, whose score was higher by {lead:.2g}"
    ) in judgement.reason
    assert "labels>=0.99 is required" in judgement.reason


def test_a_share_of_labels_within_the_bound_is_accepted() -> None:
    baseline = scores(ENOUGH)
    outputs = changed(baseline, 7, logits=-baseline[7]["logits"])
    assert judged(baseline, outputs, "labels>=0.99").accepted
    assert judged(baseline, outputs, "labels>=0.999").verdict is not None


def test_the_worst_input_is_named_by_the_measure_that_fails() -> None:
    baseline = [{"embedding": np.eye(4)[place % 4]} for place in range(60)]
    turned = changed(baseline, 3, embedding=np.array([0.0, 0, 0.6, 0.8]))
    judgement = judged(baseline, turned, "cos>=0.999", kind=requirements.EMBEDDING)
    assert judgement.verdict is Verdict.REJECTED
    assert judgement.reason == "the cosine for image-3.jpg is 0.8; cos>=0.999 is required"
    shifted = changed(baseline, 5, embedding=baseline[5]["embedding"] * 1.5)
    judgement = judged(baseline, shifted, "relative<=5%", kind=requirements.EMBEDDING)
    assert judgement.reason.startswith("'embedding' for image-5.jpg differs by 50 % of its largest number")
    assert judgement.agreement and judgement.agreement.worst_input == "image-5.jpg"


def test_what_no_softmax_depends_on_does_not_hide_a_difference() -> None:
    logarithms = [{"logits": -20 + scores(1, seed=place)[0]["logits"]} for place in range(60)]
    others = [{"logits": -20 + scores(1, seed=place + 60)[0]["logits"]} for place in range(60)]
    assert not judged(logarithms, others, "cos>=0.98").accepted
    shifted = [{"logits": each["logits"] + 5} for each in logarithms]
    assert judged(logarithms, shifted, "cos>=0.9999").accepted


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_never_accepted(value: float) -> None:
    baseline = scores(ENOUGH)
    outputs = changed(baseline, 9, logits=np.where(np.arange(10) == 2, value, baseline[9]["logits"]))
    judgement = judged(baseline, outputs, "cos>=0.1")
    assert judgement.verdict is Verdict.REJECTED
    assert judgement.reason == "1 of 10 numbers of 'logits' for image-9.jpg are not finite"
    both = judged(outputs, outputs, "cos>=0.1")
    assert both.verdict is Verdict.REJECTED and both.reason.endswith("not finite; the original's, too")
    original = judged(outputs, baseline, "cos>=0.1")
    assert original.verdict is Verdict.UNDECIDED and "the original's own 'logits' for image-9.jpg" in original.reason


def test_outputs_of_other_names_or_shapes_are_rejected() -> None:
    baseline = scores(ENOUGH)
    assert (
        "its outputs are scores, not logits"
        in judged(baseline, [{"scores": each["logits"]} for each in baseline]).reason
    )
    judgement = judged(baseline, changed(baseline, 4, logits=np.zeros(11)))
    assert judgement.reason == "'logits' for image-4.jpg has the shape (11,), not (10,)"


def test_an_output_of_another_type_is_rejected() -> None:
    """A client of KServe's protocol would get FP32 in the place of FP64."""
    baseline = scores(ENOUGH)
    wider = [{"logits": each["logits"].astype(np.float64)} for each in baseline]
    assert judged(wider, baseline).reason == "'logits' is of the type float32, not float64"


def test_outputs_with_nothing_in_them_do_not_agree() -> None:
    judgement = judged([{}] * ENOUGH, [{}] * ENOUGH)
    assert judgement.verdict is Verdict.UNDECIDED
    assert judgement.reason == "the model returns nothing to compare"


def test_every_output_of_a_model_is_compared() -> None:
    baseline = [{"boxes": np.ones((2, 4)), "ids": np.array([place, 1])} for place in range(60)]
    assert judged(baseline, baseline, kind=requirements.TENSORS).accepted
    moved = changed(baseline, 2, boxes=np.ones((2, 4)) * 2)
    assert judged(baseline, moved, kind=requirements.TENSORS).reason.startswith(
        "'boxes' for image-2.jpg differs by 100 %"
    )
    renamed = changed(baseline, 2, ids=np.array([2, 0]))
    assert judged(baseline, renamed, kind=requirements.TENSORS).reason == "'ids' for image-2.jpg is different"


def test_small_outputs_are_not_compared_with_nothing() -> None:
    """An output of zeros is compared with the largest number of that output for other inputs."""
    baseline = [{"out": np.array([float(place)])} for place in range(60)]
    outputs = [{"out": each["out"] + 0.005} for each in baseline]
    assert judged(baseline, outputs, "relative<=0.01", kind=requirements.REGRESSION).accepted
    assert not judged(baseline, outputs, "relative<=0.001", kind=requirements.REGRESSION).accepted
    zeros = [{"out": np.zeros(1)} for _ in range(60)]
    judgement = judged(zeros, changed(zeros, 0, out=np.array([1e-9])), kind=requirements.REGRESSION)
    assert "differs by more than 100,000 % of its largest number" in judgement.reason


def test_a_single_score_is_a_label_by_its_threshold() -> None:
    baseline = [{"out": np.array([0.2])} for _ in range(ENOUGH)]
    outputs = [{"out": np.array([-0.1])} for _ in range(ENOUGH)]
    assert "the labels of 0 of 299 inputs agree" in judged(baseline, outputs, "labels>=0.9").reason
    probabilities = requirements.kind_of("torchmar_handlers.tabular_classifier", {"activation": "none"})
    assert judged(baseline, [{"out": np.array([0.4])}] * ENOUGH, "labels>=0.9", kind=probabilities).accepted


def test_labels_of_pixels_and_tokens_are_shares_of_an_input() -> None:
    baseline = [{"out": np.stack([np.ones((4, 4)), np.zeros((4, 4))])} for _ in range(60)]
    half = np.stack([np.repeat([[0.0, 1.0]], 8, 0).reshape(4, 4), np.full((4, 4), 0.5)])
    judgement = judged(baseline, changed(baseline, 0, out=half), "labels>=0.9", kind=requirements.PIXELS)
    assert judgement.accepted and judgement.agreement
    assert judgement.agreement.labels == pytest.approx((59 + 0.5) / 60)


@pytest.mark.parametrize(
    ("keep", "kind", "least", "total"),
    [
        ("labels>=0.99", requirements.CLASSIFIER, 299, 398),
        ("labels>=0.97", requirements.CLASSIFIER, 99, 131),
        ("cos>=0.999", requirements.EMBEDDING, 59, 78),
    ],
)
def test_too_few_inputs_decide_nothing(keep: str, kind: requirements.Kind, least: int, total: int) -> None:
    baseline = scores(least)
    assert judged(baseline, baseline, keep, kind=kind).accepted
    judgement = judged(baseline[:-1], baseline[:-1], keep, kind=kind)
    assert judgement.verdict is Verdict.UNDECIDED
    assert f"{least - 1} held-out inputs are too few to show {keep}" in judgement.reason
    assert f"give --data FOLDER with at least {total} inputs" in judgement.reason
    assert judged([], [], keep, kind=kind).verdict is Verdict.UNDECIDED


def test_few_inputs_reject_only_what_chance_cannot_explain() -> None:
    baseline = scores(10)
    one = judged(baseline, changed(baseline, 0, logits=-baseline[0]["logits"]), "labels>=0.99")
    assert one.verdict is Verdict.UNDECIDED and "the labels of 9 of 10 inputs agree" in one.reason
    assert judged(baseline, scores(10, seed=1), "labels>=0.99").verdict is Verdict.REJECTED
    assert judged(baseline, scores(10, seed=1), "cos>=0.9").verdict is Verdict.REJECTED


def test_explanations_are_judged_where_the_variant_has_its_own() -> None:
    baseline = scores(ENOUGH)
    low = judged(baseline, baseline, "explanations>=0.9", explanations={"a.jpg": 0.95, "b.jpg": 0.4})
    assert low.reason == "the explanations of b.jpg have a rank correlation of 0.4; explanations>=0.9 is required"
    assert low.agreement and low.agreement.explanations == 0.4
    assert judged(baseline, baseline, "explanations>=0.9").accepted


def test_the_check_may_lose_a_share_of_the_originals_metric() -> None:
    baseline = scores(ENOUGH)

    def reason(before: Metric, after: Metric, *keep: str) -> str:
        judgement = judged(baseline, baseline, *keep, metrics=(before, after))
        return "" if judgement.accepted else judgement.reason

    assert not reason(Metric(0.92), Metric(0.915))
    assert reason(Metric(0.92), Metric(0.90)) == (
        "the check returned 0.9, and 0.92 for the original; check<=0.01 is required"
    )
    assert not reason(Metric(0.92), Metric(0.90), "check<=5%")
    errors = (Metric(10.0, lower_is_better=True), Metric(9.0, lower_is_better=True))
    assert not reason(*errors) and reason(*reversed(errors))
