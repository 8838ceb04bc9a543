"""Latency at a rate, with the code of ``torchmar bench``: an open loop, with compared answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from harness.models import Model
from harness.sides import Failed, Running
from torchmar.connection import Endpoint
from torchmar.exchange import Request
from torchmar.load.answers import Comparison, Expected
from torchmar.load.expectations import Expectations
from torchmar.load.measuring import StepSpec, measure
from torchmar.load.results import Step
from torchmar.load.target import Target
from torchmar.load.workload import Case, Workload

_WARMUP_S = 5.0  # Java compiles functions that are called often


def at_rate(running: Running, model: Model, rate: float, seconds: float) -> Step:
    """Measure the latency of a server at a rate.

    Raises:
        Failed: a request failed, or got a wrong answer.
    """
    parts = urlsplit(running.url)
    headers = dict(running.headers(model))
    content_type = headers.pop("Content-Type")
    cases = [
        Case(f"request {index}", Request(running.body(model, body), content_type, headers=headers))
        for index, body in enumerate(model.bodies)
    ]
    expected = [
        Expected(case.name, 200, _comparison(running, model, answer))
        for case, answer in zip(cases, model.expected, strict=True)
    ]
    target = Target(
        endpoint=Endpoint(inference=f"{parts.scheme}://{parts.netloc}", tokens={}),
        model=model.name,
        path=parts.path,
        pid=running.pid,
    )
    step = measure(
        target,
        Workload(model.name, tuple(cases)),
        Expectations(tuple(expected), len(expected), ()),
        StepSpec(rate=rate, duration_s=seconds, warmup_s=_WARMUP_S, timeout_s=60),
    )
    if step.failed:
        raise Failed(f"{step.failed} of {step.sent} requests failed: {step.errors[0].kind}, {step.errors[0].example}")
    if step.wrong_answers:
        raise Failed(f"{step.wrong_answers} wrong answers, such as {step.wrong_answer}")
    return step


def _comparison(running: Running, model: Model, expected: Any) -> Comparison:
    def difference(status: int, body: bytes) -> str:
        try:
            answer: Mapping[str, Any] | list[Any] = json.loads(body)
            found = running.value(model, answer)
            return "" if model.same(found, expected) else f"{str(found)[:200]} in place of {str(expected)[:200]}"
        except (ValueError, LookupError, TypeError) as error:
            return f"{body[:200]!r} is no answer: {error}"

    return difference
