"""torchmar_handlers.common.reply writes answers as JSON, or raises an error."""

from __future__ import annotations

import enum
import json
from typing import Any

import numpy as np
import pytest

from torchmar_handlers.common import reply
from torchmar_handlers.common.reply import Reply


class Name(str):
    """A text of a class of its own, as tokenizers have them."""


@pytest.fixture(params=["orjson", "json"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "json":
        monkeypatch.setattr(reply, "orjson", None)
    return str(request.param)


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize(
    "answer",
    [
        {"7": 0.97763, "tiny": 1e-7, "large": 1e300, "zero": -0.0},
        [1, 2**53 + 1, -(2**63), 2**64, 2**70],
        {1: "one", None: "none", 2.5: "more"},
        {"null": None, "word": "null", "nested": [None, {"a": [None]}]},
        {"text": 'é "quoted" \\ \n \u2028', Name("key"): Name("value")},
        [(1, 2), (3.5, "four")],
        [],
        0.1 + 0.2,
        True,
        None,
    ],
)
def test_an_answer_is_read_back_as_it_was(answer: Any) -> None:
    reply = Reply.json(answer)
    assert reply.content_type == "application/json"
    assert json.loads(reply.body) == json.loads(json.dumps(answer))
    assert b": " not in reply.body


@pytest.mark.usefixtures("encoder")
def test_numbers_of_arrays_have_the_digits_of_their_type() -> None:
    array = np.array([[0.1, 1 / 3], [1e-8, -0.0]], np.float32)
    assert json.loads(Reply.json(array).body) == array.tolist()
    answer = {"scores": array, "best": np.float32(0.1), "class": np.int64(3), "sure": np.True_}
    assert json.loads(Reply.json(answer).body) == {
        "scores": array.tolist(),
        "best": float(np.float32(0.1)),
        "class": 3,
        "sure": True,
    }


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf"), np.array([1.0, np.nan])])
def test_numbers_that_json_lacks_are_rejected(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        Reply.json({"score": value})


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, 1j])
def test_values_that_json_lacks_are_rejected(value: Any) -> None:
    with pytest.raises(TypeError, match="which JSON cannot say"):
        Reply.json([value])


@pytest.mark.usefixtures("encoder")
def test_a_text_that_is_an_enumeration_is_its_value() -> None:
    class Label(str, enum.Enum):
        CAT = "cat"

    assert Reply.json({"label": Label.CAT}).body == b'{"label":"cat"}'
