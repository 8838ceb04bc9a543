"""Compare a response with the expectation of a sample."""

from __future__ import annotations

import json
import math
from typing import Any

from torchmar.exchange import Response
from torchmar.recipe import Sample


def differences(sample: Sample, answer: Response) -> list[str]:
    """Return the differences between an answer and the expectation of a sample, in words; empty: there is none.

    Only the expected keys of an object are compared, arrays must have the same length, and
    numbers are equal within the sample's absolute tolerance.
    """
    if answer.status != sample.status:
        document = answer.body.decode("utf-8", "replace")[:200]
        return [f"status {answer.status}, not {sample.status}: {document}"]
    if sample.expect is None:
        return []
    try:
        actual = json.loads(answer.body)
    except ValueError:
        actual = answer.body.decode("utf-8", "replace")
    return _compare(sample.expect, actual, sample.tolerance, "")


def _compare(expected: Any, actual: Any, tolerance: float, place: str) -> list[str]:
    subject = place or "the answer"
    if isinstance(expected, dict) and isinstance(actual, dict):
        missing = [f"{subject} has no {key!r}" for key in expected if key not in actual]
        below = (
            _compare(value, actual[key], tolerance, f"{place}.{key}".lstrip("."))
            for key, value in expected.items()
            if key in actual
        )
        return [*missing, *(difference for differences in below for difference in differences)]
    if isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return [f"{subject} has {len(actual)} items, not {len(expected)}"]
        differences_of_items = (
            _compare(*pair, tolerance, f"{place}[{index}]")
            for index, pair in enumerate(zip(expected, actual, strict=True))
        )
        return [difference for differences in differences_of_items for difference in differences]
    if _number(expected) and _number(actual):
        same = math.isclose(expected, actual, rel_tol=0, abs_tol=tolerance)
        return [] if same else [f"{subject} is {actual}, not {expected} within {tolerance}"]
    same = expected == actual and type(expected) is type(actual)
    return [] if same else [f"{subject} is {_short(actual)}, not {_short(expected)}"]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
