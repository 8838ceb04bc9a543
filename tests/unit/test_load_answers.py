"""The comparison of answers under load."""

from __future__ import annotations

import json

from torchmar import comparison
from torchmar.exchange import Response
from torchmar.load.answers import AnswerCheck, Expected
from torchmar.load.recorder import Tag
from torchmar.recipe import Sample

SAMPLE = Sample(json=0, expect={"class": 3}, tolerance=0.01)
TAG = (0, True)


def _compared(calls: list[bytes]) -> Expected:
    def difference(status: int, body: bytes) -> str:
        calls.append(body)
        return "; ".join(comparison.differences(SAMPLE, Response(status, body)))

    return Expected("three.png", 200, difference)


def test_bytes_of_a_right_answer_are_compared_once() -> None:
    calls: list[bytes] = []
    tags: list[Tag] = []
    check = AnswerCheck([_compared(calls)], tags.append)
    body = b'{"class": 3}'
    for _ in range(3):
        check.add(0, body, TAG)
        check.finish()
    assert calls == [body]
    assert tags == []


def test_an_answer_within_the_tolerance_is_right() -> None:
    tags: list[Tag] = []
    check = AnswerCheck([_compared([])], tags.append)
    check.add(0, b'{"class": 3.0001}', TAG)
    check.finish()
    assert (tags, check.example) == ([], "")


def test_each_wrong_answer_counts_and_the_first_is_the_example() -> None:
    tags: list[Tag] = []
    check = AnswerCheck([_compared([])], tags.append)
    for number, value in enumerate((3, 5, 5, 7)):
        check.add(0, json.dumps({"class": value}).encode(), (number, True))
    assert check.waits
    assert tags == []  # compared when there is time
    check.finish()
    assert not check.waits
    assert tags == [(1, True), (2, True), (3, True)]
    assert check.example == "three.png: class is 5, not 3 within 0.01"


def test_an_answer_without_an_expected_one_is_not_kept() -> None:
    check = AnswerCheck([Expected("a.txt")])
    check.add(0, b"anything", TAG)
    assert not check.waits


def test_answers_to_different_requests_are_not_exchanged() -> None:
    def expects(text: bytes) -> Expected:
        return Expected(text.decode(), 200, lambda status, body: "" if body == text else "another answer")

    tags: list[Tag] = []
    check = AnswerCheck([expects(b"a"), expects(b"b")], tags.append)
    for index, body in ((0, b"a"), (1, b"b"), (0, b"b")):
        check.add(index, body, TAG)
    check.finish()
    assert (tags, check.example) == ([TAG], "a: another answer")
