"""Requirements of agreement: as users write them, and the defaults of each kind of model."""

from __future__ import annotations

import pytest

from tests.support.paths import ROOT
from torchmar.errors import TorchmarError
from torchmar.optimizing import requirements


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
    assert str(requirements.parse(text)) == shown


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
        requirements.parse(text)
    assert hint in caught.value.hint


def test_requirements_replace_the_defaults_of_the_kind_of_model() -> None:
    def shown(kind: requirements.Kind, *texts: str, check: bool = False) -> list[str]:
        return [str(each) for each in requirements.required(texts, kind, check=check)]

    assert shown(requirements.CLASSIFIER)[0] == "labels>=0.99"
    assert shown(requirements.kind_of("torchmar_handlers.text_embedder")) == ["cos>=0.999"]
    assert shown(requirements.kind_of("torchmar_handlers.tabular_regressor")) == ["relative<=0.02"]
    assert shown(requirements.kind_of("handler.py:MyHandler")) == shown(requirements.TENSORS)
    assert shown(requirements.CLASSIFIER, "top1>=0.9,cos>=0.9", "explanations>=0.8") == [
        "labels>=0.9", "cos>=0.9", "explanations>=0.8",
    ]  # fmt: skip
    assert shown(requirements.EMBEDDING, check=True) == ["cos>=0.999", "check<=0.01"]


def test_help_and_documentation_have_the_defaults() -> None:
    texts = [(ROOT / name).read_text() for name in ("docs/how-to/optimize.md", "torchmar/cli/optimizing.py")]
    for kind in requirements.KINDS:
        defaults = " and ".join(map(str, kind.defaults))
        assert all(defaults in " ".join(text.replace('"', " ").split()) for text in texts), defaults


@pytest.mark.parametrize(
    ("texts", "kind", "message"),
    [
        (["cos>=0.9", "cosine>=0.8"], requirements.EMBEDDING, "cos is required twice"),
        (["labels>=0.9"], requirements.EMBEDDING, "an embedding has no labels"),
        (["check<=0.1"], requirements.CLASSIFIER, "there is no check"),
        ([""], requirements.CLASSIFIER, "'' is no requirement"),
    ],
)
def test_requirements_that_make_no_sense_are_errors(texts: list[str], kind: requirements.Kind, message: str) -> None:
    with pytest.raises(TorchmarError, match=message):
        requirements.required(texts, kind)
