"""The gate of an optimisation: requirements, judgements and their reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.support.paths import ROOT
from torchmar.errors import TorchmarError
from torchmar.optimizing import gate
from torchmar.optimizing.gate import Judgement, Metric, judge, parse, rank_agreement, requirements
from torchmar.optimizing.results import Verdict

ENOUGH = 299


def scores(count: int, classes: int = 10, seed: int = 0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [{"logits": generator.normal(size=classes).astype(np.float32)} for _ in range(count)]


def changed(baseline: Sequence[gate.Outputs], place: int, **values: Any) -> list[dict[str, np.ndarray]]:
    copied = [dict(outputs) for outputs in baseline]
    copied[place].update(values)
    return copied


def judged(
    baseline: Sequence[gate.Outputs],
    outputs: Sequence[gate.Outputs],
    *keep: str,
    kind: gate.Kind = gate.CLASSIFIER,
    **options: Any,
) -> Judgement:
    names = [f"image-{place}.jpg" for place in range(len(baseline))]
    return judge(baseline, outputs, names, requirements(keep, kind, check="metrics" in options), kind, **options)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("labels>=0.99", "labels>=0.99"),
        ("top1 >= 99.5%", "labels>=0.995"),
        ("cosine>=.999", "cos>=0.999"),
        ("relative<=5%", "relative<=0.05"),
        ("Relative<=1e-3", "relative<=0.001"),
        ("explanations>=0.9", "explanations>=0.9"),
        ("check<=0", "check<=0"),
    ],
)
def test_a_requirement_is_a_measure_and_a_bound(text: str, shown: str) -> None:
    assert str(parse(text)) == shown


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("labels", "no requirement", "--keep 'labels>=0.99'"),
        ("accuracy>=0.9", "no requirement", "relative<=0.05"),
        ("labels>0.9", "no requirement", "labels>=0.99"),
        ("labels>=x", "no requirement", "labels>=0.99"),
        ("top1<=0.99", "top1 has a lower bound", "top1>=0.99"),
        ("relative>=5%", "relative has an upper bound", "relative<=5%"),
        ("labels>=99", "above 0 and at most 1", "labels>=0.99"),
        ("cos>=0", "above 0 and at most 1", "cos>=0.999"),
    ],
)
def test_anything_else_is_an_error_with_an_example(text: str, message: str, hint: str) -> None:
    with pytest.raises(TorchmarError, match=message) as caught:
        parse(text)
    assert hint in caught.value.hint


def test_requirements_replace_the_defaults_of_the_kind_of_model() -> None:
    def shown(kind: gate.Kind, *texts: str, check: bool = False) -> list[str]:
        return [str(each) for each in requirements(texts, kind, check=check)]

    assert shown(gate.CLASSIFIER)[0] == "labels>=0.99"
    assert shown(gate.kind_of("torchmar_handlers.text_embedder")) == ["cos>=0.999"]
    assert shown(gate.kind_of("torchmar_handlers.tabular_regressor")) == ["relative<=0.02"]
    assert shown(gate.kind_of("handler.py:MyHandler")) == shown(gate.TENSORS)
    assert shown(gate.CLASSIFIER, "top1>=0.9,cos>=0.9", "explanations>=0.8") == [
        "labels>=0.9", "cos>=0.9", "explanations>=0.8",
    ]  # fmt: skip
    assert shown(gate.EMBEDDING, check=True) == ["cos>=0.999", "check<=0.01"]


def test_help_and_documentation_have_the_defaults() -> None:
    texts = [(ROOT / name).read_text() for name in ("docs/how-to/optimize.md", "torchmar/cli/optimizing.py")]
    for kind in gate.KINDS:
        defaults = " and ".join(map(str, kind.defaults))
        assert all(defaults in " ".join(text.replace('"', " ").split()) for text in texts), defaults


@pytest.mark.parametrize(
    ("texts", "kind", "message"),
    [
        (["cos>=0.9", "cosine>=0.8"], gate.EMBEDDING, "cos is required twice"),
        (["labels>=0.9"], gate.EMBEDDING, "an embedding has no labels"),
        (["check<=0.1"], gate.CLASSIFIER, "there is no check"),
    ],
)
def test_requirements_that_make_no_sense_are_errors(texts: list[str], kind: gate.Kind, message: str) -> None:
    with pytest.raises(TorchmarError, match=message):
        requirements(texts, kind)


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
    judgement = judged(baseline, turned, "cos>=0.999", kind=gate.EMBEDDING)
    assert judgement.verdict is Verdict.REJECTED
    assert judgement.reason == "the cosine for image-3.jpg is 0.8; cos>=0.999 is required"
    shifted = changed(baseline, 5, embedding=baseline[5]["embedding"] * 1.5)
    judgement = judged(baseline, shifted, "relative<=5%", kind=gate.EMBEDDING)
    assert judgement.reason.startswith("'embedding' for image-5.jpg differs by 50 % of its largest number")
    assert judgement.agreement and judgement.agreement.worst_input == "image-5.jpg"


def test_what_no_softmax_depends_on_does_not_hide_a_difference() -> None:
    logarithms = [{"logits": -20 + scores(1, seed=place)[0]["logits"]} for place in range(60)]
    others = [{"logits": -20 + scores(1, seed=place + 60)[0]["logits"]} for place in range(60)]
    assert not judged(logarithms, others, "cos>=0.98").accepted
    shifted = [{"logits": each["logits"] + 5} for each in logarithms]
    assert judged(logarithms, shifted, "cos>=0.9999").accepted


def test_the_rows_of_a_call_are_inputs_of_their_own() -> None:
    calls = [{"out": np.arange(6.0).reshape(3, 2)}, {"out": np.zeros((5, 4))}]
    outputs, names = gate.by_instance(calls, ["three.csv", "boxes.jpg"], [3, None])
    assert names == ["three.csv (row 1)", "three.csv (row 2)", "three.csv (row 3)", "boxes.jpg"]
    assert outputs[1]["out"].tolist() == [2.0, 3.0] and outputs[3]["out"].shape == (5, 4)


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


def test_every_output_of_a_model_is_compared() -> None:
    baseline = [{"boxes": np.ones((2, 4)), "ids": np.array([place, 1])} for place in range(60)]
    assert judged(baseline, baseline, kind=gate.TENSORS).accepted
    moved = changed(baseline, 2, boxes=np.ones((2, 4)) * 2)
    assert judged(baseline, moved, kind=gate.TENSORS).reason.startswith("'boxes' for image-2.jpg differs by 100 %")
    renamed = changed(baseline, 2, ids=np.array([2, 0]))
    assert judged(baseline, renamed, kind=gate.TENSORS).reason == "'ids' for image-2.jpg is another"


def test_small_outputs_are_not_compared_with_nothing() -> None:
    """An output of zeros is compared with the largest number of that output for other inputs."""
    baseline = [{"out": np.array([float(place)])} for place in range(60)]
    outputs = [{"out": each["out"] + 0.005} for each in baseline]
    assert judged(baseline, outputs, "relative<=0.01", kind=gate.REGRESSION).accepted
    assert not judged(baseline, outputs, "relative<=0.001", kind=gate.REGRESSION).accepted
    zeros = [{"out": np.zeros(1)} for _ in range(60)]
    judgement = judged(zeros, changed(zeros, 0, out=np.array([1e-9])), kind=gate.REGRESSION)
    assert "differs by more than 100,000 % of its largest number" in judgement.reason


def test_a_single_score_is_a_label_by_its_threshold() -> None:
    baseline = [{"out": np.array([0.2])} for _ in range(ENOUGH)]
    outputs = [{"out": np.array([-0.1])} for _ in range(ENOUGH)]
    assert "the labels of 0 of 299 inputs agree" in judged(baseline, outputs, "labels>=0.9").reason
    probabilities = gate.kind_of("torchmar_handlers.tabular_classifier", {"activation": "none"})
    assert judged(baseline, [{"out": np.array([0.4])}] * ENOUGH, "labels>=0.9", kind=probabilities).accepted


def test_labels_of_pixels_and_tokens_are_shares_of_an_input() -> None:
    baseline = [{"out": np.stack([np.ones((4, 4)), np.zeros((4, 4))])} for _ in range(60)]
    half = np.stack([np.repeat([[0.0, 1.0]], 8, 0).reshape(4, 4), np.full((4, 4), 0.5)])
    judgement = judged(baseline, changed(baseline, 0, out=half), "labels>=0.9", kind=gate.PIXELS)
    assert judgement.accepted and judgement.agreement
    assert judgement.agreement.labels == pytest.approx((59 + 0.5) / 60)


@pytest.mark.parametrize(
    ("keep", "kind", "least", "total"),
    [
        ("labels>=0.99", gate.CLASSIFIER, 299, 398),
        ("labels>=0.97", gate.CLASSIFIER, 99, 131),
        ("cos>=0.999", gate.EMBEDDING, 59, 78),
    ],
)
def test_too_few_inputs_decide_nothing(keep: str, kind: gate.Kind, least: int, total: int) -> None:
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


def test_the_rank_agreement_is_spearmans() -> None:
    values = np.array([[3.0, 1.0], [2.0, 5.0]])
    assert rank_agreement(values, np.exp(values)) == pytest.approx(1.0)
    assert rank_agreement(values, -values) == pytest.approx(-1.0)
    # scipy.stats.spearmanr([1, 2, 2, 3, 5], [2, 1, 4, 4, 3]).statistic
    tied = rank_agreement(np.array([1, 2, 2, 3, 5]), np.array([2, 1, 4, 4, 3]))
    assert tied == pytest.approx(0.39473684210526316)


def test_explanations_without_ranks_agree_only_with_their_like() -> None:
    flat, values = np.zeros(4), np.arange(4.0)
    assert rank_agreement(flat, flat) == 1.0
    assert rank_agreement(flat, values) == 0.0
    assert rank_agreement(values, np.full(4, np.nan)) == 0.0
    with pytest.raises(ValueError, match="shapes"):
        rank_agreement(values, np.arange(3.0))
