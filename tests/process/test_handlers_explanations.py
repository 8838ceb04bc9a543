"""torchmar_handlers.explanations gives every row the attributions that captum gives it alone."""

from __future__ import annotations

import importlib
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from torchmar_handlers.explanations import (
    IMAGE_METHODS,
    METHODS,
    TOKEN_METHODS,
    ExplainOptions,
    Explanation,
    bags,
    baseline,
    document,
    explain,
    explain_tokens,
    folding,
    precision,
    quadrature,
    read,
)
from torchmar_handlers.explanations.attention_rollout import rollout
from torchmar_handlers.explanations.explanation import rounded
from torchmar_handlers.request import BadRequest, Request

Scores = Callable[..., torch.Tensor]

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


def captum() -> Any:
    """Return captum's methods; its import takes a second, which only a process that runs these tests should take."""
    return importlib.import_module("captum.attr")


def scikit_learn() -> Any:
    """Return scikit-learn's data sets; its import takes as long."""
    return importlib.import_module("sklearn.datasets")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower with more, the more so where others work on the same cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fit(model: nn.Module, labels: torch.Tensor, *inputs: torch.Tensor, steps: int = 150) -> nn.Module:
    """Train on all rows at once; return the model as a handler has it, frozen and in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(*inputs), labels).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def stored(scripted: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Return TorchScript as a worker has it: read from a file."""
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    loaded: torch.jit.ScriptModule = torch.jit.load(file).eval()
    for parameter in loaded.parameters():
        parameter.requires_grad_(False)
    return loaded


def close(one: Any, other: Any, tolerance: float = 1e-4) -> bool:
    """Return whether two arrays differ by no more than a share of the largest value."""
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return first.shape == second.shape and np.abs(first - second).max() <= tolerance * np.abs(second).max()


# --------------------------------------------------------------------------------------- requests


def request(**options: object) -> Request:
    return Request(0, {"body": options}, {})


def test_a_request_without_options_gets_the_defaults() -> None:
    assert read(request()) == ExplainOptions("integrated_gradients", None, 50, "zeros", explicit=False)
    usual = {"method": "occlusion", "n_steps": 20, "baseline": "blur"}
    assert read(request(), defaults=usual) == ExplainOptions("occlusion", None, 20, "blur", explicit=False)


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        ({"method": "saliency"}, "method", "saliency"),
        ({"method": " Gradient-SHAP "}, "method", "gradient_shap"),
        ({"target": "seven"}, "target", "seven"),
        ({"target": 0}, "target", 0),
        ({"n_steps": "20"}, "n_steps", 20),
        ({"n_steps": 1000.0}, "n_steps", 1000),
        ({"n_steps": "auto"}, "n_steps", None),
        ({"baseline": "Mean"}, "baseline", "mean"),
        ({"baseline": "0.5"}, "baseline", 0.5),
        ({"baseline": 0}, "baseline", 0),
        ({"baseline": "[0, 0.5]"}, "baseline", [0, 0.5]),
        ({"baseline": [[1, 2], [3, 4]]}, "baseline", [[1, 2], [3, 4]]),
    ],
)
def test_an_option_is_taken_as_text_and_as_json(options: dict[str, object], field: str, expected: object) -> None:
    parsed = read(request(**options))
    assert getattr(parsed, field) == expected
    assert parsed.explicit == ("method" in options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "integrated_gradients, saliency, gradient_shap, grad_cam, occlusion, feature_ablation"),
        ({"method": 3}, "method 3 is none of"),
        ({"n_steps": 0}, "from 1 to 1000"),
        ({"n_steps": "1001"}, "from 1 to 1000"),
        ({"n_steps": 2.5}, "2.5 is not a whole number"),
        ({"n_steps": "many"}, "'many' is not a whole number"),
        ({"n_steps": True}, "whole number"),
        ({"baseline": "black"}, "zeros, mean, blur, a number or a list"),
        ({"baseline": "nan"}, "zeros, mean, blur"),
        ({"baseline": {"a": 1}}, "zeros, mean, blur"),
        ({"baseline": "[1, 2"}, "not JSON"),
        ({"baseline": [[1], [2, 3]]}, "as many in each row"),
        ({"baseline": []}, "not made of numbers"),
        ({"baseline": ["a"]}, "not made of numbers"),
    ],
)
def test_an_invalid_option_is_rejected_with_the_valid_ones(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        read(request(**options))
    assert caught.value.error_code == 400


def test_a_handler_offers_methods_and_baselines_of_its_own() -> None:
    offered: dict[str, Any] = {"methods": ("saliency",), "baselines": ("zeros", "pad")}
    assert read(request(method="saliency", baseline="pad"), **offered).baseline == "pad"
    with pytest.raises(BadRequest, match="is none of saliency"):
        read(request(method="occlusion"), **offered)


# -------------------------------------------------------------------------------------- baselines


def test_a_baseline_is_made_of_a_word_a_number_or_values() -> None:
    image = torch.rand(3, 6, 4)
    assert baseline.of("zeros", image).abs().sum() == 0
    assert torch.equal(baseline.of("mean", image), image.mean((1, 2), keepdim=True).expand(3, 6, 4))
    assert torch.equal(baseline.of(0.5, image), torch.full((3, 6, 4), 0.5))
    assert torch.equal(baseline.of([[[1.0]], [[2.0]], [[3.0]]], image)[1], torch.full((6, 4), 2.0))
    assert torch.equal(baseline.of("mean", torch.rand(2), torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))


def test_blur_keeps_the_mean_and_loses_the_detail() -> None:
    flat = torch.full((1, 9, 1), 0.25)
    assert torch.allclose(baseline.of("blur", flat), flat)
    checkers = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).float()[None]
    assert (baseline.of("blur", checkers) - 0.5)[:, 4:-4, 4:-4].abs().max() < 0.01


@pytest.mark.parametrize(
    ("choice", "row", "message"),
    [
        ([1.0, 2.0], torch.zeros(3), r"shape \[2\]; the input's is \[3\]"),
        ([[1.0, 2.0, 3.0]], torch.zeros(3), r"shape \[1, 3\]"),
        ("blur", torch.zeros(3), "for images"),
        ("mean", torch.zeros(3), "says no means"),
        ("pad", torch.zeros(3), "pad"),
    ],
)
def test_a_baseline_that_does_not_fit_is_rejected(choice: object, row: torch.Tensor, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        baseline.of(choice, row)


# --------------------------------------------------------------------------------- images, tables


class Digits(nn.Module):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images).flatten(1))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(scikit_learn().load_digits().images[:300] / 16).float()[:, None]


@pytest.fixture(scope="module")
def digits(images: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    return fit(Digits(), torch.from_numpy(scikit_learn().load_digits().target[:300]), images, steps=60)


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    values = torch.from_numpy(scikit_learn().load_breast_cancer().data).float()
    return (values - values.mean(0)) / values.std(0)


@pytest.fixture(scope="module")
def cancer(table: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 2))
    return fit(model, torch.from_numpy(scikit_learn().load_breast_cancer().target), table)


FORMS: dict[str, Callable[[nn.Module, torch.Tensor], nn.Module]] = {
    "eager": lambda model, _: model,
    "scripted": lambda model, _: stored(torch.jit.script(model)),
    "traced": lambda model, inputs: stored(torch.jit.trace(model, inputs)),
    "frozen": lambda model, inputs: stored(torch.jit.freeze(torch.jit.trace(model, inputs))),
}
METHODS_OF_ALL = tuple(method for method in METHODS if method != "grad_cam")


def captum_alone(method: str, model: nn.Module, row: torch.Tensor, start: torch.Tensor, target: int) -> torch.Tensor:
    """Return captum's attributions of one row with 20 steps and, for perturbations, one at a time."""
    single_row, base = row[None], start[None]
    if method == "integrated_gradients":
        return captum().IntegratedGradients(model).attribute(single_row, base, target, n_steps=20)
    if method == "saliency":
        return captum().Saliency(model).attribute(single_row.clone().requires_grad_(), target, abs=False)
    if method == "gradient_shap":
        np.random.seed(0)
        return captum().GradientShap(model).attribute(single_row, base, n_samples=20, target=target)
    if method == "occlusion":
        window = (1,) if row.dim() == 1 else (1, 2, 2)
        return (
            captum().Occlusion(model).attribute(single_row, window, (1,) if row.dim() == 1 else (1, 1, 1), base, target)
        )
    number = torch.arange(single_row.numel()).view(single_row.shape)  # the digits are 8x8, the grid as well
    return captum().FeatureAblation(model).attribute(single_row, base, target, feature_mask=number)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS_OF_ALL)
def test_images_have_the_attributions_that_captum_gives_each_alone(
    digits: nn.Module, images: torch.Tensor, method: str, form: str
) -> None:
    model, rows = FORMS[form](digits, images[:5]), images[:5]
    targets = torch.tensor([0, 1, 2, 3, 7])
    choices: list[Any] = ["zeros", "mean", "blur", 0.5, np.linspace(0, 1, 64).reshape(1, 8, 8).tolist()]
    explain_options = [ExplainOptions(method, None, 20, choice) for choice in choices]
    explanations = explain(model, rows, targets, explain_options)
    for row, target, choice, explanation in zip(rows, targets.tolist(), choices, explanations, strict=True):
        expected = captum_alone(method, digits, row, baseline.of(choice, row), target)[0]
        assert close(explanation.attributions, expected.detach())
        assert (explanation.method, explanation.target, explanation.instead_of) == (method, target, None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS_OF_ALL)
def test_tables_have_the_attributions_that_captum_gives_each_alone(
    cancer: nn.Module, table: torch.Tensor, method: str, form: str
) -> None:
    model, rows, targets = FORMS[form](cancer, table[:4]), table[:4], torch.tensor([0, 1, 1, 0])
    mean = table.mean(0)
    for choice in ("zeros", "mean", 1):
        explanations = explain(model, rows, targets, [ExplainOptions(method, None, 20, choice)] * 4, mean=mean)
        for row, target, explanation in zip(rows, targets.tolist(), explanations, strict=True):
            expected = captum_alone(method, cancer, row, baseline.of(choice, row, mean), target)[0]
            assert close(explanation.attributions, expected.detach())


@pytest.mark.parametrize(("smooth", "expected"), [(True, 16), (False, 48)])
def test_an_integral_of_several_passes_takes_as_many_points_as_its_gradients_need(smooth: bool, expected: int) -> None:
    torch.manual_seed(0)
    activation = nn.Softplus() if smooth else nn.ReLU()
    model = nn.Sequential(nn.Linear(20, 256), activation, nn.Linear(256, 256), activation, nn.Linear(256, 3))
    model.eval().requires_grad_(False)
    rows, targets = torch.randn(3, 20), torch.tensor([0, 1, 2])
    exact = explain(model, rows, targets, [ExplainOptions(n_steps=500)] * 3)
    usual = explain(model, rows, targets, [ExplainOptions(n_steps=50)] * 3)
    found = explain(model, rows, targets, [ExplainOptions(n_steps=None)] * 3, max_forward_batch=16)

    def error(explanations: Sequence[Explanation]) -> float:
        pairs = zip(explanations, exact, strict=True)
        return float(np.mean([np.linalg.norm(one.attributions - other.attributions) for one, other in pairs]))

    assert [explanation.n_steps for explanation in found] == [expected] * 3
    largest = max(np.abs(explanation.attributions).max() for explanation in exact)
    assert error(found) <= (5e-4 * largest if smooth else error(usual))
    (alone,) = explain(model, rows[:1], targets[:1], [ExplainOptions(n_steps=None)], max_forward_batch=16)
    assert np.array_equal(alone.attributions, found[0].attributions)


def test_points_of_the_integral_are_nested_and_weighted_for_polynomials() -> None:
    assert np.allclose(quadrature.spaced(16), quadrature.spaced(48)[1::3])
    for count, degree in ((16, 1), (16, 5), (48, 0)):
        points, weights = quadrature.spaced(count), quadrature.weights(count, degree)
        assert weights.min() > 0
        for power in range(degree + 1):
            assert weights @ points**power == pytest.approx(1 / (power + 1), rel=1e-9)


@pytest.mark.parametrize("flat", ["flatten", "view", "strides"])
def test_code_that_depends_on_the_layout_gets_the_usual_one(flat: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4 * 36, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.convolution(images).relu()
            if flat == "view":
                return self.head(maps.view(len(maps), -1))
            if flat == "strides":  # what lies in memory, in whatever order
                return self.head(maps.as_strided((len(maps), 144), (144, 1)))
            return self.head(maps.flatten(1))

    torch.manual_seed(0)
    model, row = Net().eval().requires_grad_(False), torch.rand(1, 3, 8, 8)
    (explanation,) = explain(model, row, torch.tensor([1]), [ExplainOptions(n_steps=20)])
    assert close(explanation.attributions, captum_alone("integrated_gradients", model, row[0], row[0] * 0, 1)[0])


class Normed(nn.Module):
    """Convolutions with batch norms that are used alone, with their own inputs, twice, and once more in some passes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1, bias=index == 0) for index in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        self.head = nn.Linear(3, 2)
        self.whole = False  # whether the output of a convolution is used without its batch norm

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = nn.functional.relu6(self.norms[0](self.convolutions[0](images)))
        second = self.norms[1](self.convolutions[1](first))
        second += first
        third = self.convolutions[2](second.relu())
        fourth = self.convolutions[3](third + self.norms[2](third))
        maps = self.norms[3](fourth)
        return self.head((maps + fourth if self.whole else maps).mean((2, 3)))


def test_batch_norms_are_multiplied_into_the_convolutions_that_nothing_else_uses() -> None:
    torch.manual_seed(0)
    model, row, target = Normed().eval().requires_grad_(False), torch.rand(1, 3, 8, 8), torch.tensor([1])
    recorder = folding.Recorder()
    with recorder:
        scores = model(row)
    plan = recorder.plan()
    assert list(plan.convolutions) == [id(model.convolutions[place].weight) for place in (0, 1, 3)]
    assert [each.overwritten for each in plan.convolutions.values()] == [True, False, False]
    assert torch.allclose(plan.score(model, row), scores, atol=1e-6)
    assert plan.usable
    model.whole = True
    assert torch.equal(plan.score(model, row), model(row))
    assert not plan.usable
    for whole in (False, True):
        model.whole = whole
        (explanation,) = explain(model, row, target, [ExplainOptions(n_steps=20)])
        expected = captum_alone("integrated_gradients", model, row[0], row[0] * 0, 1)[0]
        assert close(explanation.attributions, expected)


def test_gradients_in_bfloat16_are_near_and_the_answer_says_so(cancer: nn.Module, table: torch.Tensor) -> None:
    rows, targets = table[:4], torch.tensor([0, 1, 1, 0])
    asked = [ExplainOptions(method) for method in ("integrated_gradients", "saliency", "occlusion", "gradient_shap")]
    exact = explain(cancer, rows, targets, asked)
    for form in ("eager", "traced"):
        found = explain(FORMS[form](cancer, rows), rows, targets, asked, dtype=torch.bfloat16)
        for one, other in zip(found, exact, strict=True):
            assert close(one.attributions, other.attributions, 0.05)
            gradients = one.method != "occlusion"
            assert document(one).get("dtype") == ("bfloat16" if gradients else None)
            assert np.array_equal(one.attributions, other.attributions) != gradients
            assert not other.dtype
    assert found[0].note == "integrated gradients, 50 steps, baseline zeros, bfloat16"


def test_the_error_of_another_type_is_that_of_the_worst_input(cancer: nn.Module, table: torch.Tensor) -> None:
    each = [precision.largest_error(cancer, [row[None]], torch.bfloat16) for row in table[:3]]
    assert 0 < max(each) < precision.MOST_ERROR
    together = precision.largest_error(cancer, [table[:2], table[2:3]], torch.bfloat16)
    assert together == pytest.approx(max(each), rel=0.2)
    weights = torch.stack([1000.5 + torch.arange(64) / 50, torch.zeros(64)], 1)  # 1000 in bfloat16

    def differences(rows: torch.Tensor) -> torch.Tensor:
        return rows @ weights - rows.sum(1, keepdim=True) * 1001

    assert precision.largest_error(differences, [torch.rand(1, 64)], torch.bfloat16) > precision.MOST_ERROR


def test_occlusion_slides_windows_of_a_seventh_of_the_image(images: torch.Tensor, digits: nn.Module) -> None:
    large = nn.functional.interpolate(images[:2], (28, 21))

    def score(batch: torch.Tensor) -> torch.Tensor:
        return digits(nn.functional.interpolate(batch, (8, 8)))

    explanations = explain(score, large, torch.tensor([0, 1]), [ExplainOptions("occlusion")] * 2, max_forward_batch=50)
    expected = captum().Occlusion(score).attribute(large, (1, 4, 3), (1, 2, 1), target=torch.tensor([0, 1]))
    assert close([explanation.attributions for explanation in explanations], expected)


def test_feature_ablation_leaves_out_patches_of_a_grid(images: torch.Tensor) -> None:
    def brightness(batch: torch.Tensor) -> torch.Tensor:
        return batch.sum((1, 2, 3))[:, None]

    image = torch.rand(1, 3, 20, 5)
    (explanation,) = explain(brightness, image, torch.tensor([0]), [ExplainOptions("feature_ablation")])
    assert explanation.attributions[0, :3, 0] == pytest.approx(image[0, :, :3, 0].sum().item(), rel=1e-4)
    assert np.ptp(explanation.attributions, axis=0).max() == 0


def test_columns_of_a_group_are_left_out_together(cancer: nn.Module, table: torch.Tensor) -> None:
    groups = torch.tensor([0, 0, 0, *range(1, 28)])
    (explanation,) = explain(cancer, table[:1], torch.tensor([1]), [ExplainOptions("feature_ablation")], groups=groups)
    without = table[:1].clone()
    without[0, :3] = 0
    lost = (cancer(table[:1]) - cancer(without))[0, 1].item()
    assert explanation.attributions[:3] == pytest.approx([lost] * 3, rel=1e-4)


@pytest.mark.parametrize("method", ["occlusion", "feature_ablation"])
def test_a_part_that_equals_the_baseline_takes_no_forward_pass(digits: nn.Module, method: str) -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3:5, 3:5] = 1
    rows: list[int] = []

    def score(batch: torch.Tensor) -> torch.Tensor:
        rows.append(len(batch))
        return digits(batch)

    (explanation,) = explain(score, image, torch.tensor([3]), [ExplainOptions(method)])
    assert close(explanation.attributions[None], captum_alone(method, digits, image[0], torch.zeros(1, 8, 8), 3))
    assert sum(rows) == 1 + (9 if method == "occlusion" else 4)  # and the image itself


def test_grad_cam_is_captums_enlarged(digits: Digits, images: torch.Tensor) -> None:
    rows, targets = images[:3], torch.tensor([0, 1, 2])
    convolution = digits.features[3]
    small = captum().LayerGradCam(digits, convolution).attribute(rows.clone().requires_grad_(), targets)
    expected = captum().LayerAttribution.interpolate(small, (8, 8), "bilinear").detach()
    wish = ExplainOptions("grad_cam", explicit=True)
    for layer in (None, "features.3"):
        explanations = explain(digits, rows, targets, [wish] * 3, model=digits, layer=layer)
        assert close([explanation.attributions for explanation in explanations], expected)
        assert explanations[0].attributions.shape == (1, 8, 8)
    other = explain(digits, rows, targets, [wish] * 3, model=digits, layer="features.0")
    assert not close([explanation.attributions for explanation in other], expected)


def test_a_row_has_the_same_answer_alone_and_among_others(digits: nn.Module, images: torch.Tensor) -> None:
    methods = [*METHODS, "integrated_gradients", "saliency", "integrated_gradients"]
    baselines = ["zeros", "blur", "mean"] * 3
    steps = [20, 20, 20, 20, 20, 20, 7, 20, 20]
    explain_options = [ExplainOptions(*row) for row in zip(methods, [None] * 9, steps, baselines, strict=True)]
    rows, targets = images[:9], torch.arange(9)
    together = explain(digits, rows, targets, explain_options, model=digits, max_forward_batch=64)
    for index, expected in enumerate(together):
        place = slice(index, index + 1)
        (alone,) = explain(digits, rows[place], targets[place], explain_options[place], model=digits)
        assert close(alone.attributions, expected.attributions, 1e-5)
        assert alone.delta == (None if expected.delta is None else pytest.approx(expected.delta, abs=1e-5))
        assert alone.method == expected.method == explain_options[index].method


def test_the_same_request_gives_the_same_attributions(digits: nn.Module, images: torch.Tensor) -> None:
    for method in METHODS:
        first, second = (
            explain(digits, images[:2], torch.tensor([3, 4]), [ExplainOptions(method)] * 2, model=digits)
            for _ in range(2)
        )
        assert np.array_equal(first[1].attributions, second[1].attributions)


def test_integrated_gradients_are_complete(cancer: nn.Module, table: torch.Tensor) -> None:
    targets = torch.ones(20, dtype=torch.long)
    scores = cancer(table[:20])
    difference = (scores - cancer(torch.zeros(1, 30)))[:, 1]
    explanations = explain(cancer, table[:20], targets, [ExplainOptions(n_steps=50)] * 20, scores=scores)
    sums = [explanation.attributions.sum() for explanation in explanations]
    assert sums == pytest.approx(difference.tolist(), rel=1e-3, abs=1e-3)
    coarse = explain(cancer, table[:20], targets, [ExplainOptions(n_steps=2)] * 20)
    expected = [
        explanation.attributions.sum() - gap for explanation, gap in zip(coarse, difference.tolist(), strict=True)
    ]
    assert [explanation.delta for explanation in coarse] == pytest.approx(expected, abs=1e-4)
    assert max(abs(explanation.delta or 0) for explanation in coarse) > 10 * max(
        abs(explanation.delta or 0) for explanation in explanations
    )


def test_one_output_is_a_regression(table: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Linear(30, 1).requires_grad_(False)
    for score in (model, lambda rows: model(rows)[:, 0]):
        (explanation,) = explain(score, table[:1], torch.tensor([0]), [ExplainOptions()])
        assert close(explanation.attributions, (model.weight * table[:1])[0])
        assert explanation.delta == pytest.approx(0, abs=1e-5)


def test_rows_of_a_pass_are_bounded(cancer: nn.Module, table: torch.Tensor) -> None:
    seen: list[int] = []

    def score(rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return cancer(rows)

    for method in METHODS_OF_ALL:
        explain(score, table[:7], torch.zeros(7, dtype=torch.long), [ExplainOptions(method)] * 7, max_forward_batch=10)
    assert max(seen) <= 10


def test_the_callers_tensors_may_be_inference_tensors(digits: nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        rows = images[:2] * 1
        explanations = explain(
            digits, rows, digits(rows).argmax(1), [ExplainOptions(n_steps=5)] * 2, scores=digits(rows)
        )
    assert [explanation.instead_of for explanation in explanations] == [None, None]
    assert not rows.requires_grad


# ---------------------------------------------------------------------------- without gradients


def session(model: nn.Module, *inputs: torch.Tensor) -> Scores:
    """Return a function with the scores of ONNX Runtime, for any number of rows and of tokens."""
    file = io.BytesIO()
    names = [f"input{number}" for number in range(len(inputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = tuple({0: "rows", 1: "tokens"} if tensor.dtype == torch.long else {0: "rows"} for tensor in inputs)
        program = torch.onnx.export(model, inputs, input_names=names, dynamic_shapes=dynamic, verbose=False)
    program.save(file)
    running = onnxruntime.InferenceSession(file.getvalue())
    return lambda *batch: torch.from_numpy(
        running.run(None, {name: one.numpy() for name, one in zip(names, batch, strict=True)})[0]
    )


def without_gradients(form: str, model: nn.Module, inputs: torch.Tensor) -> Scores:
    if form == "onnx":
        return session(model, inputs)
    return torch.jit.optimize_for_inference(torch.jit.trace(model, inputs))


@pytest.mark.parametrize("form", ["onnx", "optimized"])
def test_the_default_method_is_replaced_if_there_are_no_gradients(
    digits: nn.Module, images: torch.Tensor, cancer: nn.Module, table: torch.Tensor, form: str
) -> None:
    zero = torch.tensor([0])
    score = without_gradients(form, digits, images[:2])
    (image,) = explain(score, images[:1], zero, [ExplainOptions()])
    assert (image.method, image.instead_of, image.n_steps) == ("occlusion", "integrated_gradients", None)
    assert str(image.reason).startswith("these weights give no gradients (")
    (expected,) = explain(digits, images[:1], zero, [ExplainOptions("occlusion")])
    assert close(image.attributions, expected.attributions)
    with pytest.raises(BadRequest, match="method saliency cannot be had: these weights give no gradients"):
        explain(score, images[:1], zero, [ExplainOptions("saliency", explicit=True)])
    (row,) = explain(session(cancer, table[:2]), table[:1], zero, [ExplainOptions("saliency")])
    assert (row.method, row.instead_of) == ("feature_ablation", "saliency")


@pytest.mark.parametrize("method", ["integrated_gradients", "saliency", "gradient_shap"])
def test_a_named_method_that_needs_missing_gradients_is_rejected(
    digits: nn.Module, images: torch.Tensor, method: str
) -> None:
    explain_options, targets = [ExplainOptions(), ExplainOptions(method, explicit=True)], torch.tensor([0, 1])
    with pytest.raises(BadRequest, match=f"method {method} cannot be had: .* can: occlusion, feature_ablation"):
        explain(digits, images[:2], targets, explain_options, differentiable=False)
    first, second = explain(
        digits, images[:2], targets, [ExplainOptions(method), ExplainOptions()], differentiable=False
    )
    assert (first.method, first.instead_of) == ("occlusion", method)
    assert second.reason == "these weights give no gradients"


def test_grad_cam_needs_an_eager_model(digits: nn.Module, images: torch.Tensor) -> None:
    wish, zero = ExplainOptions("grad_cam", explicit=True), torch.tensor([0])
    scripted = FORMS["scripted"](digits, images)
    with pytest.raises(BadRequest, match=r"needs an eager model; .*integrated_gradients"):
        explain(scripted, images[:1], zero, [wish], model=scripted)
    (explanation,) = explain(scripted, images[:1], zero, [replace(wish, explicit=False)], model=scripted)
    assert (explanation.method, explanation.instead_of) == ("occlusion", "grad_cam")


class Attends(nn.Module):
    """One layer of attention whose tokens are the patches of an image, with or without a class token."""

    def __init__(self, has_class: bool) -> None:
        super().__init__()
        self.has_class = has_class
        self.softmax = nn.Softmax(-1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = nn.functional.avg_pool2d(images, 8).flatten(1)[:, :, None]
        if self.has_class:
            tokens = torch.cat([tokens.amax(1, keepdim=True), tokens], 1)
        weights = self.softmax((4 * tokens @ tokens.transpose(1, 2))[:, None])
        return torch.cat([(weights[:, 0] @ tokens)[:, 0], tokens.mean(1)], 1)


@pytest.mark.parametrize("has_class", [True, False])
def test_attention_rollout_shows_the_patches_that_are_attended_to(has_class: bool) -> None:
    images = torch.zeros(2, 1, 32, 48)
    images[0, 0, 8:16, 24:32] = 1
    images[1, 0, 24:32, :8] = 1
    wish = ExplainOptions("attention_rollout", explicit=True)
    model = Attends(has_class)
    for explanation, (row, column) in zip(
        explain(model, images, torch.tensor([0, 1]), [wish] * 2, model=model), [(12, 28), (28, 4)], strict=True
    ):
        values = explanation.attributions[0]
        assert values.shape == (32, 48)
        assert values.min() >= 0
        assert values[row, column] > 0.9 * values.max()  # a patch in a corner is extrapolated
        assert (explanation.note, explanation.baseline) == ("attention rollout", None)


def test_attention_rollout_is_the_product_of_the_layers() -> None:
    first, second = torch.rand(2, 2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    halves = [(layer.mean(1) + torch.eye(5)) / 2 for layer in (first, second)]
    expected = halves[1] @ halves[0]
    assert torch.allclose(rollout([first, second]), expected, atol=1e-6)
    assert torch.allclose(expected.sum(-1), torch.ones(2, 5), atol=1e-6)


def test_attention_rollout_needs_an_eager_model_with_attention(digits: nn.Module, images: torch.Tensor) -> None:
    assert "attention_rollout" in IMAGE_METHODS
    wish, zero = ExplainOptions("attention_rollout", explicit=True), torch.tensor([0])
    with pytest.raises(BadRequest, match=r"a torch\.nn\.Softmax for its attention; .*integrated_gradients"):
        explain(digits, images[:1], zero, [wish], model=digits)
    scripted = FORMS["scripted"](digits, images)
    with pytest.raises(BadRequest, match="needs an eager model"):
        explain(scripted, images[:1], zero, [wish], model=scripted)
    (explanation,) = explain(digits, images[:1], zero, [replace(wish, explicit=False)], model=digits)
    assert (explanation.method, explanation.instead_of) == ("occlusion", "attention_rollout")


def test_a_model_that_fails_is_not_taken_for_one_without_gradients(images: torch.Tensor) -> None:
    def broken(rows: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the weights are of another model")

    for explicit in (False, True):
        with pytest.raises(RuntimeError, match="another model"):
            explain(broken, images[:1], torch.tensor([0]), [ExplainOptions(explicit=explicit)])


# ---------------------------------------------------------------------------------------- texts

PAD, UNK, CLS = 0, 1, 2
REPLACEMENTS = {"pad": PAD, "unk": UNK}
GOOD = ["good", "great", "fine", "happy", "lovely", "excellent"]
POOR = ["bad", "awful", "sad", "poor", "boring", "terrible"]
OTHER = ["the", "film", "was", "a", "story", "of", "people", "and", "their", "days", "in", "town", "with", "music"]
VOCABULARY = {word: number for number, word in enumerate(["[pad]", "[unk]", "[cls]", *GOOD, *POOR, *OTHER])}


def encode(texts: Sequence[str], length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [[CLS, *(VOCABULARY.get(word, UNK) for word in text.split())] for text in texts]
    longest = length or max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def written(count: int) -> tuple[list[str], torch.Tensor]:
    random = np.random.RandomState(1)
    texts, labels = [], []
    for number in range(count):
        words = list(random.choice(OTHER, random.randint(3, 9)))
        words[1:1] = random.choice((POOR, GOOD)[number % 2], random.randint(1, 3))
        texts.append(" ".join(words))
        labels.append(number % 2)
    return texts, torch.tensor(labels)


class Transformer(nn.Module):
    """Learned positions and attention, with the mask that is given to it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(len(VOCABULARY), 16, padding_idx=PAD)
        self.positions = nn.Embedding(64, 16)  # larger than the vocabulary
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.attend(ids, mask.to(torch.bool))

    def attend(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        weights = self.query(hidden) @ self.key(hidden).transpose(1, 2) / 4.0
        weights = weights.masked_fill(~mask[:, None], -1e9).softmax(-1)
        hidden = self.norm(hidden + weights @ self.value(hidden))
        return self.head(hidden[:, 0])


class MaskOfItsOwn(Transformer):
    """The mask is made of the ids."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.attend(ids, ids != 0)


class Recurrent(nn.Module):
    """Reads whatever it is given, padding too."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(len(VOCABULARY), 8)
        self.gru = nn.GRU(8, 12, batch_first=True)
        self.head = nn.Linear(12, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(self.tokens(ids))[0].mean(1))


class LooksAtIds(Recurrent):
    """Sees one id with other eyes than those of its embedding."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        loud = (ids == 3).sum(1, keepdim=True).to(torch.float32)
        return self.head(self.gru(self.tokens(ids))[0].mean(1)) + loud


class Bag(nn.Module):
    """The mean of embeddings, of flat ids and offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.EmbeddingBag(len(VOCABULARY), 8, mode="mean")
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(8, 2))

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return self.head(self.tokens(ids, offsets))


@pytest.fixture(scope="module")
def readers() -> Mapping[str, nn.Module]:
    texts, labels = written(200)
    ids, mask = encode(texts)
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {}
    for kind in (Transformer, MaskOfItsOwn, Recurrent, LooksAtIds):
        models[kind.__name__] = fit(kind(), labels, ids, mask, steps=60)
    lengths = mask.sum(1)
    models["Bag"] = fit(Bag(), labels, ids[mask.bool()], lengths.cumsum(0) - lengths, steps=60)
    return models


TEXTS = ["the film was good", "a sad story of people and boring music", "great", "the town was fine"]
TARGETS = torch.tensor([1, 0, 1, 1])


def captum_of_embeddings(method: str, model: Any, text: str, target: int, start: int) -> np.ndarray:
    """Return captum's attributions of one text, with its hook into the embeddings of an eager model."""
    ids, mask = encode([text])
    starts = torch.full_like(ids, start)
    starts[0, 0] = CLS
    options: dict[str, Any] = {"target": target, "additional_forward_args": mask}
    if method == "integrated_gradients":
        ways = captum().LayerIntegratedGradients(model, model.tokens)
        attributions = ways.attribute(ids, starts, n_steps=20, **options)
    else:
        points = model.tokens(ids).detach()
        layer, model.tokens = model.tokens, nn.Identity()
        try:
            if method == "saliency":
                attributions = captum().Saliency(model).attribute(points.requires_grad_(), abs=False, **options)
            else:
                np.random.seed(0)
                attributions = captum().GradientShap(model).attribute(points, layer(starts), n_samples=20, **options)
        finally:
            model.tokens = layer
    values: np.ndarray = attributions.sum(-1)[0].detach().numpy()
    values[0] = 0  # [CLS] is no part of the text
    return values


def explained(
    model: Any,
    texts: Sequence[str],
    explain_options: ExplainOptions,
    targets: torch.Tensor | None = None,
    **options: Any,
) -> list[Explanation]:
    ids, mask = encode(texts, options.pop("length", None))
    targets = TARGETS[: len(texts)] if targets is None else targets
    options = {"replacements": REPLACEMENTS, "special": ids == CLS} | options
    return explain_tokens(model, ids, mask, targets, [explain_options] * len(texts), **options)


@pytest.mark.parametrize("form", ["eager", "scripted", "traced"])
@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("integrated_gradients", "Transformer"),
        ("integrated_gradients", "Recurrent"),
        # For the other two captum needs embeddings in place of ids, of which this model can make no mask.
        ("integrated_gradients", "MaskOfItsOwn"),
        ("saliency", "Transformer"),
        ("saliency", "Recurrent"),
        ("gradient_shap", "Transformer"),
        ("gradient_shap", "Recurrent"),
    ],
)
def test_texts_have_the_attributions_that_captum_gives_embeddings_alone(
    readers: Mapping[str, nn.Module], method: str, name: str, form: str
) -> None:
    eager = readers[name]
    model = FORMS[form](eager, encode(TEXTS))
    explanations = explained(model, TEXTS, ExplainOptions(method, n_steps=20, baseline="unk"))
    for text, target, explanation in zip(TEXTS, TARGETS.tolist(), explanations, strict=True):
        assert (explanation.method, explanation.instead_of) == (method, None)
        assert close(explanation.attributions, captum_of_embeddings(method, eager, text, target, UNK))


@pytest.mark.parametrize("form", ["eager", "scripted", "traced"])
def test_no_token_loses_its_gradient_to_a_padding_idx(form: str) -> None:
    torch.manual_seed(0)
    eager = Recurrent().eval().requires_grad_(False)
    # Torch gives this row no gradient, and a trace does not show which it is.
    eager.tokens.padding_idx = 4
    model = FORMS[form](eager, encode(TEXTS))
    explanations = explained(model, TEXTS[:1], ExplainOptions(n_steps=20, baseline="pad"), replacements={"pad": 4})
    assert np.abs(explanations[0].attributions[1:]).min() > 0
    eager.tokens.padding_idx = None
    assert close(explanations[0].attributions, captum_of_embeddings("integrated_gradients", eager, TEXTS[0], 1, 4))


@pytest.mark.parametrize("name", ["Transformer", "Recurrent", "Bag"])
def test_integrated_gradients_of_texts_are_complete(readers: Mapping[str, nn.Module], name: str) -> None:
    module = readers[name]
    model = bags(module) if name == "Bag" else module
    table = module.tokens.weight
    for choice, row in (("zeros", torch.zeros(table.shape[1])), ("unk", table[UNK])):
        explanations = explained(model, TEXTS, ExplainOptions(baseline=choice), module=module)
        for text, target, explanation in zip(TEXTS, TARGETS, explanations, strict=True):
            ids, mask = encode([text])
            with torch.no_grad():
                kept = table.clone()
                table[3:] = row
                nothing = model(ids, mask)
                table.copy_(kept)
                expected = (model(ids, mask) - nothing)[0, target].item()
            assert explanation.instead_of is None
            assert explanation.attributions.sum() == pytest.approx(expected, rel=0.01, abs=0.01)
            assert explanation.delta == pytest.approx(explanation.attributions.sum() - expected, abs=1e-4)


@pytest.mark.parametrize("method", TOKEN_METHODS)
@pytest.mark.parametrize("name", ["Transformer", "Recurrent", "Bag"])
def test_a_text_has_the_same_answer_alone_and_among_longer_ones(
    readers: Mapping[str, nn.Module], name: str, method: str
) -> None:
    module = readers[name]
    model = bags(module) if name == "Bag" else module
    together = explained(model, TEXTS, ExplainOptions(method, n_steps=10), module=module, max_forward_batch=16)
    for place, (text, expected) in enumerate(zip(TEXTS, together, strict=True)):
        targets = TARGETS[place : place + 1]
        (alone,) = explained(model, [text], ExplainOptions(method, n_steps=10), targets, module=module)
        assert alone.method == expected.method == method
        assert alone.attributions.shape == (1 + len(text.split()),)
        assert close(alone.attributions, expected.attributions, 1e-5)


@pytest.mark.parametrize("name", ["Transformer", "MaskOfItsOwn"])
@pytest.mark.parametrize("method", TOKEN_METHODS)
def test_a_model_of_one_length_gets_texts_as_they_are_padded(
    readers: Mapping[str, nn.Module], name: str, method: str
) -> None:
    lengths: set[int] = set()

    def model(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        lengths.add(ids.shape[1])
        return readers[name](ids, mask)

    padded = explained(model, TEXTS, ExplainOptions(method), module=readers[name], length=12, one_length=True)
    assert lengths == {12}
    for explanation, expected in zip(padded, explained(readers[name], TEXTS, ExplainOptions(method)), strict=True):
        assert explanation.method == method
        assert close(explanation.attributions, expected.attributions, 1e-4)


def test_ablation_gives_the_loss_of_score_without_a_token(readers: Mapping[str, nn.Module]) -> None:
    model = readers["Recurrent"]
    ids, mask = encode(["the film was good"])
    variants = ids.repeat(4, 1)
    variants[torch.arange(4), torch.arange(1, 5)] = UNK
    lost = (model(ids, mask) - model(variants, mask.expand(4, -1)))[:, 1].tolist()
    (explanation,) = explained(
        model, ["the film was good"], ExplainOptions("feature_ablation", baseline="unk"), torch.tensor([1])
    )
    assert explanation.attributions == pytest.approx([0, *lost], abs=1e-5)
    variants = ids.repeat(4, 1)
    for row, words in enumerate([(1, 2), (1, 2, 3), (2, 3, 4), (3, 4)]):
        variants[row, list(words)] = UNK
    lost = (model(ids, mask) - model(variants, mask.expand(4, -1)))[:, 1].tolist()
    (explanation,) = explained(
        model, ["the film was good"], ExplainOptions("occlusion", baseline="unk"), torch.tensor([1])
    )
    means = [np.mean(lost[:2]), np.mean(lost[:3]), np.mean(lost[1:]), np.mean(lost[2:])]
    assert explanation.attributions == pytest.approx([0, *means], abs=1e-5)


@pytest.mark.parametrize("form", ["eager", "scripted", "frozen"])
def test_a_model_that_reads_ids_in_other_ways_is_explained_by_ablation(
    readers: Mapping[str, nn.Module], form: str
) -> None:
    eager = readers["LooksAtIds"]
    model = FORMS[form](eager, encode(TEXTS))
    explanations = explained(model, TEXTS, ExplainOptions())
    expected = explained(eager, TEXTS, ExplainOptions("feature_ablation"))
    for explanation, other in zip(explanations, expected, strict=True):
        assert (explanation.method, explanation.instead_of, explanation.delta) == (
            "feature_ablation",
            "integrated_gradients",
            None,
        )
        assert explanation.reason == "the model reads token ids in other ways than through one table of embeddings"
        assert close(explanation.attributions, other.attributions)
    with pytest.raises(BadRequest, match=r"in other ways .* can: occlusion, feature_ablation"):
        explained(model, TEXTS, ExplainOptions("saliency", explicit=True))


def test_a_session_of_onnx_runtime_is_explained_by_ablation(readers: Mapping[str, nn.Module]) -> None:
    model = session(readers["Transformer"], *encode(TEXTS))
    for method in ("feature_ablation", "occlusion"):
        explanations = explained(model, TEXTS, ExplainOptions(method, explicit=True))
        for explanation, expected in zip(
            explanations, explained(readers["Transformer"], TEXTS, ExplainOptions(method)), strict=True
        ):
            assert close(explanation.attributions, expected.attributions, 1e-3)
    (usual, *_) = explained(model, TEXTS, ExplainOptions())
    assert (usual.method, usual.instead_of) == ("feature_ablation", "integrated_gradients")
    assert usual.reason == "these weights have no table of embeddings to take gradients of"


def test_the_embeddings_are_put_back_whatever_happens(readers: Mapping[str, nn.Module]) -> None:
    for name in ("Transformer", "LooksAtIds"):
        for model in (readers[name], FORMS["scripted"](readers[name], encode(TEXTS))):
            ids, mask = encode(TEXTS)
            weight, before = model.tokens.weight, model(ids, mask)
            explained(model, TEXTS, ExplainOptions())
            assert model.tokens.weight is weight
            assert isinstance(model.tokens.weight, nn.Parameter) or isinstance(model, torch.jit.ScriptModule)
            assert torch.equal(model(ids, mask), before)
            assert not weight.requires_grad


def test_a_text_without_tokens_has_no_attributions(readers: Mapping[str, nn.Module]) -> None:
    nothing = torch.zeros(1, 3, dtype=torch.long)
    for method in TOKEN_METHODS:
        (explanation,) = explain_tokens(
            readers["Recurrent"],
            nothing,
            nothing,
            torch.tensor([0]),
            [ExplainOptions(method)],
            replacements=REPLACEMENTS,
        )
        assert explanation.attributions.shape == (0,)
        (explanation,) = explained(readers["Recurrent"], [""], ExplainOptions(method), torch.tensor([0]))
        assert explanation.attributions.tolist() == [0]


def test_grad_cam_is_not_for_texts(readers: Mapping[str, nn.Module]) -> None:
    with pytest.raises(BadRequest, match="grad_cam is for images"):
        explained(readers["Recurrent"], TEXTS, ExplainOptions("grad_cam", explicit=True))


@pytest.mark.parametrize("choice", ["mask", "blur", 3, [1.0]])
def test_a_baseline_of_texts_is_one_that_the_handler_offers(readers: Mapping[str, nn.Module], choice: object) -> None:
    with pytest.raises(BadRequest, match="zeros, pad, unk"):
        explained(readers["Recurrent"], TEXTS, ExplainOptions(baseline=choice))


# ------------------------------------------------------------------------------------- documents


def test_a_document_is_json_with_four_digits_of_the_largest() -> None:
    values = np.array([[0.123456, -12.34567], [1e-9, 0]], np.float32)
    written = document(Explanation("occlusion", 3, values, "zeros", instead_of="saliency", reason="so"), label="three")
    assert json.loads(json.dumps(written, allow_nan=False)) == {
        "method": "occlusion",
        "instead_of": "saliency",
        "reason": "so",
        "baseline": "zeros",
        "target": 3,
        "label": "three",
        "shape": [2, 2],
        "attributions": [[0.12, -12.35], [0, 0]],
    }
    more = document(Explanation("integrated_gradients", 0, values, 0.5, 20, delta=-0.00123456), label=None)
    assert (more["convergence_delta"], more["n_steps"], more["baseline"], more["target"]) == (-0.00123, 20, 0.5, 0)
    assert not more.keys() & {"label", "instead_of", "reason"}


@pytest.mark.parametrize("largest", [1e-290, 1e-30, 0.5, 1.0, 9.9999, 1e6, 1e30])
def test_rounding_keeps_large_and_small_values(largest: float) -> None:
    values = np.array([largest, -largest / 3, 0])
    assert np.abs(rounded(values) - values).max() <= 5e-4 * largest
    assert rounded(np.zeros(3)).tolist() == rounded(-np.zeros(3)).tolist() == [0, 0, 0]


def test_a_note_names_the_method_of_an_explanation() -> None:
    values = np.zeros(1)
    assert Explanation("gradient_shap", 0, values, "mean", 20).note == "gradient shap, 20 samples, baseline mean"
    assert Explanation("saliency", 0, values).note == "saliency"
    replaced = Explanation("occlusion", 0, values, "given", instead_of="integrated_gradients")
    assert replaced.note == "occlusion, baseline given, in place of integrated gradients"
