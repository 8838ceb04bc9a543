"""Compare two versions of a model on the same requests: agreement and latency."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torchmar import comparison
from torchmar.connection import Endpoint
from torchmar.deployment import smoke_test
from torchmar.deployment.smoke_test import Question
from torchmar.errors import TorchmarError
from torchmar.exchange import Response
from torchmar.inference import InferenceClient
from torchmar.recipe import Sample

# What is different about the second answer, in words; nothing if they agree.
Agreement = Callable[[Response, Response], str]
Verdict = Literal["pass", "answers differ", "slower", "undecided"]

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A quotient and the interval that it is in with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evidence:
    """What the comparison of two versions came to.

    Attributes:
        old: the version that answers now.
        new: the one that is to answer.
        milliseconds: of every answer of each, in the order of asking; equal places are one request.
        asked: how many different requests there were.
        differences: what the new version answered otherwise, in words, once for each request.
        allowed: how many of these are still a pass.
        quotient: of the medians, new by old.
        max_regression: what the quotient may be above 1.
    """

    old: str
    new: str
    milliseconds: tuple[tuple[float, ...], tuple[float, ...]]
    asked: int
    differences: tuple[str, ...]
    allowed: int
    quotient: Interval
    max_regression: float

    @property
    def verdict(self) -> Verdict:
        """Whether the new version is shown to be as good.

        It passes when even the upper end of the interval is within the bound; it is slower when
        even the lower end is above. Between these the requests do not tell.
        """
        if len(self.differences) > self.allowed:
            return "answers differ"
        if self.quotient.high <= 1 + self.max_regression:
            return "pass"
        return "slower" if self.quotient.low > 1 + self.max_regression else "undecided"


def compare(
    server: Endpoint,
    name: str,
    old: str,
    new: str,
    asked: Sequence[Question],
    agree: Agreement,
    *,
    repeat: int,
    max_regression: float,
    max_differences: float = 0.0,
    seed: int = 0,
    timeout: float = 120.0,
) -> Evidence:
    """Ask two versions the same requests, in pairs whose order is drawn, and compare.

    Whatever else the machine does hits both alike: the two answers of a pair are milliseconds apart.

    Args:
        server: where both are registered.
        name: the model.
        old: the version that answers now.
        new: the one that is to.
        asked: the requests.
        agree: says how two answers differ.
        repeat: pairs for each request, after one that is for warming up and comparing.
        max_regression: how much slower the median may be: 0.05 is 5 %.
        max_differences: the share of the requests that may be answered otherwise.
        seed: of the order and of the resampling.
        timeout: seconds to wait for one answer.

    Raises:
        TorchmarError: there is nothing to ask.
        ConnectError: no answer came in time.
    """
    if not asked:
        raise TorchmarError("there is no request to compare with", hint="--requests FOLDER, or samples in the archive")
    client = InferenceClient(server, timeout=timeout)
    drawn = random.Random(seed)
    differences: dict[str, str] = {}
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(1 + repeat):
        for one in asked:
            answers: dict[str, Response] = {}
            for version in drawn.sample((old, new), 2):
                answers[version], took = smoke_test.ask(client, name, one.request, version)
                if turn:
                    times[version == new].append(took)
            # Later answers are compared, too: one that is wrong now and then is wrong.
            if one.name not in differences and (found := agree(answers[old], answers[new])):
                differences[one.name] = f"{one.name}: {found}"
    return Evidence(
        old,
        new,
        (tuple(times[0]), tuple(times[1])),
        len(asked),
        tuple(differences.values()),
        math.floor(max_differences * len(asked)),
        quotient_of_medians(times[1], times[0], random.Random(seed)),
        max_regression,
    )


def quotient_of_medians(
    new: Sequence[float], old: Sequence[float], drawn: random.Random, resamples: int = RESAMPLES
) -> Interval:
    """Return the quotient of two medians and its interval by the percentile bootstrap.

    Pairs are drawn with replacement, so that what the answers of a pair have in common stays
    together (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, sections 8.3 and 13.3).

    Args:
        new: values; as many as ``old``, pair by pair.
        old: values above 0.
        drawn: the source of chance.
        resamples: how many; more make the ends of the interval steadier, not the interval smaller.
    """
    pairs = list(zip(new, old, strict=True))

    def quotient(some: Sequence[tuple[float, float]]) -> float:
        return statistics.median(one for one, _ in some) / statistics.median(other for _, other in some)

    found = sorted(quotient(drawn.choices(pairs, k=len(pairs))) for _ in range(resamples))
    tail = (1 - CONFIDENCE) / 2
    low, high = found[math.floor(tail * resamples)], found[math.ceil((1 - tail) * resamples) - 1]
    return Interval(quotient(pairs), low, high)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def agreement(text: str) -> Agreement:
    """Return what ``exact``, an absolute tolerance (``0.01``) or ``FILE.py:FUNCTION`` stands for.

    A function is called with the old and the new `torchmar.exchange.Answer`; it returns what is
    different in words, or nothing (None, an empty text, True) if they agree.

    Raises:
        TorchmarError: it is none of these, or the file has no such function.
    """
    if text == "exact":
        return within(0.0)
    if ".py:" in text:
        return _of_user(text)
    try:
        tolerance = float(text)
    except ValueError:
        tolerance = -1.0
    if not 0 <= tolerance < math.inf:
        raise TorchmarError(f"{text!r} is no way to compare answers", hint="exact, 0.01, or judge.py:function")
    return within(tolerance)


def within(tolerance: float) -> Agreement:
    """Return an agreement of JSON whose numbers are equal within an absolute tolerance, or of equal bytes."""

    def differ(old: Response, new: Response) -> str:
        if old.status != new.status:
            return f"status {new.status}, not {old.status}"
        if old.body == new.body:
            return ""
        try:
            before, after = json.loads(old.body), json.loads(new.body)
        except ValueError:
            return f"{len(new.body)} bytes that are not those {len(old.body)} of before"
        # Of an object only the keys that are expected are compared, so that both are expected in turn.
        found = _expected(before, new, tolerance) or [f"before, {one}" for one in _expected(after, old, tolerance)]
        return found[0] if found else ""

    return differ


def _expected(value: object, answer: Response, tolerance: float) -> list[str]:
    sample = Sample.model_validate({"json": True, "status": answer.status, "expect": value, "tolerance": tolerance})
    return comparison.differences(sample, answer)


def _of_user(text: str) -> Agreement:
    file, _, function = text.rpartition(":")
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise TorchmarError(f"{path} does not exist")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        judge = getattr(module, function)
    except AttributeError:
        raise TorchmarError(f"{path} has no function {function!r}") from None
    except Exception as error:
        raise TorchmarError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error

    def differ(old: Response, new: Response) -> str:
        try:
            document = judge(old, new)
        except Exception as error:
            raise TorchmarError(f"{text} failed: {type(error).__name__}: {error}") from error
        if document is False:
            return "they do not agree"
        return "" if document is None or document is True else str(document)

    return differ
