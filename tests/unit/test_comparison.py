"""torchmar.comparison lists how an answer differs from what a sample expects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from torchmar.comparison import differences
from torchmar.exchange import Response
from torchmar.recipe import Sample


@pytest.mark.parametrize(
    ("expected", "actual", "messages"),
    [
        (None, {"anything": 1}, []),
        ({"7": 0.95}, {"7": 0.9504, "1": 0.04}, []),
        ({"7": 0.95}, {"7": 0.97}, ["7 is 0.97, not 0.95 within 0.001"]),
        ({"7": 0.95}, {"1": 0.95}, ["the answer has no '7'"]),
        ({"a": {"b": [1, {"c": "x"}]}}, {"a": {"b": [1, {"c": "y"}]}}, ['a.b[1].c is "y", not "x"']),
        ([1, 2], [1, 2, 3], ["the answer has 3 items, not 2"]),
        ([1, 2], [1, 2.0005], []),
        (1, True, ["the answer is true, not 1"]),
        ("x", 1, ['the answer is 1, not "x"']),
        ({"a": 1}, [1], ['the answer is [1], not {"a": 1}']),
        ({"a": 1, "b": 2}, {"a": 5, "b": 6}, ["a is 5, not 1 within 0.001", "b is 6, not 2 within 0.001"]),
    ],
)
def test_every_difference_has_its_place(expected: Any, actual: Any, messages: list[str]) -> None:
    sample = Sample(input="x", expect=expected)
    assert differences(sample, Response(200, json.dumps(actual).encode())) == messages


def test_the_status_is_compared_first_and_text_is_text() -> None:
    sample = Sample(input="x", expect="plain")
    assert differences(sample, Response(200, b"plain")) == []
    assert differences(sample, Response(503, b"oh no")) == ["status 503, not 200: oh no"]
    assert differences(Sample(input="x", status=400), Response(400, b"{}")) == []
