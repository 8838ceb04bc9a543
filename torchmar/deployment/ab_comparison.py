"""Compare two versions of a model on the same requests: agreement and latency."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torchmar import comparison
from torchmar.connection import Endpoint
from torchmar.deployment import smoke_test
from torchmar.deployment.smoke_test import Probe
from torchmar.errors import TorchmarError
from torchmar.exchange import Response
from torchmar.inference import InferenceClient
from torchmar.recipe import Sample

# Returns the difference between the old and the new response as text; an empty text if they agree.
Agreement = Callable[[Response, Response], str]
Verdict = Literal["pass", "answers differ", "slower", "undecided"]

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A ratio and its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of comparing two versions.

    Attributes:
        old: the current default version.
        new: the version that is to replace it.
        milliseconds: the latency of every response of each version; equal indices are one request.
        requests: the number of different requests.
        differences: the requests whose responses differ, each with its first difference, as text.
        allowed: the number of differences up to which the new version passes.
        ratio: ratio of the median latencies, new to old.
        max_regression: limit for the ratio, as the amount above 1.
    """

    old: str
    new: str
    milliseconds: tuple[tuple[float, ...], tuple[float, ...]]
    requests: int
    differences: tuple[str, ...]
    allowed: int
    ratio: Interval
    max_regression: float

    @property
    def verdict(self) -> Verdict:
        """Whether the new version is shown to be as good as the old one.

        It passes if the upper end of the interval is within the limit, and is slower if the lower end is
        above it. Otherwise the number of requests is too small to decide.
        """
        if len(self.differences) > self.allowed:
            return "answers differ"
        if self.ratio.high <= 1 + self.max_regression:
            return "pass"
        return "slower" if self.ratio.low > 1 + self.max_regression else "undecided"

    def document(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {
            "verdict": self.verdict,
            "requests": self.requests,
            "differences": list(self.differences),
            "ratio_of_medians": asdict(self.ratio),
            "milliseconds": dict(zip((self.old, self.new), self.milliseconds, strict=True)),
        }


def compare(
    server: Endpoint,
    name: str,
    old: str,
    new: str,
    probes: Sequence[Probe],
    agreement: Agreement,
    *,
    repeat: int,
    max_regression: float,
    max_differences: float = 0.0,
    seed: int = 0,
    timeout: float = 120.0,
) -> Comparison:
    """Send the same requests to two versions, in pairs of random order, and compare responses and latency.

    The two responses of a pair are milliseconds apart, so that other load on the machine affects both alike.

    Args:
        server: the server of both.
        name: the model.
        old: the current default version.
        new: the version that is to replace it.
        probes: the requests.
        agreement: comparison of two responses.
        repeat: measured pairs for each request; before these, one pair warms up.
        max_regression: the share by which the median latency may be larger: 0.05 is 5 %.
        max_differences: the share of requests whose responses may differ.
        seed: seed for the order and for the resampling.
        timeout: seconds to wait for one response.

    Raises:
        TorchmarError: there are no requests.
        ConnectError: there was no response in time.
    """
    if not probes:
        raise TorchmarError("there is no request to compare with", hint="--requests FOLDER, or samples in the archive")
    client = InferenceClient(server, timeout=timeout)
    order = random.Random(seed)
    differences: dict[str, str] = {}
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(1 + repeat):
        for probe in probes:
            responses: dict[str, Response] = {}
            for version in order.sample((old, new), 2):
                responses[version], milliseconds = smoke_test.send(client, name, probe.request, version)
                if turn:
                    times[version == new].append(milliseconds)
            # Every pair is compared, because a version may give a wrong response only occasionally.
            if probe.name not in differences and (difference := agreement(responses[old], responses[new])):
                differences[probe.name] = f"{probe.name}: {difference}"
    return Comparison(
        old=old,
        new=new,
        milliseconds=(tuple(times[0]), tuple(times[1])),
        requests=len(probes),
        differences=tuple(differences.values()),
        allowed=math.floor(max_differences * len(probes)),
        ratio=ratio_of_medians(times[1], times[0], random.Random(seed)),
        max_regression=max_regression,
    )


def ratio_of_medians(
    new: Sequence[float], old: Sequence[float], generator: random.Random, resamples: int = RESAMPLES
) -> Interval:
    """Return the ratio of two medians and its confidence interval by the percentile bootstrap.

    Pairs are drawn with replacement, not single values, since the two values of a pair are correlated
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, sections 8.3 and 13.3).

    Args:
        new: values; as many as ``old``, pair by pair.
        old: values above 0.
        generator: the source of random numbers.
        resamples: number of resamples. More make the ends of the interval more exact, but do not narrow it.
    """
    pairs = list(zip(new, old, strict=True))

    def ratio(sample: Sequence[tuple[float, float]]) -> float:
        return statistics.median(value for value, _ in sample) / statistics.median(value for _, value in sample)

    ratios = sorted(ratio(generator.choices(pairs, k=len(pairs))) for _ in range(resamples))
    tail = (1 - CONFIDENCE) / 2
    low, high = ratios[math.floor(tail * resamples)], ratios[math.ceil((1 - tail) * resamples) - 1]
    return Interval(ratio(pairs), low, high)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least a share of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def agreement(text: str) -> Agreement:
    """Return the agreement named ``exact``, by an absolute tolerance (``0.01``) or by ``FILE.py:FUNCTION``.

    A function is called with the old and the new `torchmar.exchange.Response`. It returns the
    difference as text, or None, an empty text or True if they agree.

    Raises:
        TorchmarError: ``text`` has none of these forms, or the file has no such function.
    """
    if text == "exact":
        return within(0.0)
    if ".py:" in text:
        return _from_file(text)
    try:
        tolerance = float(text)
    except ValueError:
        tolerance = -1.0
    if not 0 <= tolerance < math.inf:
        raise TorchmarError(f"{text!r} is no way to compare answers", hint="exact, 0.01, or judge.py:function")
    return within(tolerance)


def within(tolerance: float) -> Agreement:
    """Return the agreement of equal bytes, or of JSON whose numbers are equal within an absolute tolerance."""

    def differ(old: Response, new: Response) -> str:
        if old.status != new.status:
            return f"status {new.status}, not {old.status}"
        if old.body == new.body:
            return ""
        try:
            before, after = json.loads(old.body), json.loads(new.body)
        except ValueError:
            return f"{len(new.body)} bytes that differ from the {len(old.body)} bytes before"
        # An object may have more keys than the expected one; therefore the comparison is done in both directions.
        differences = _differences(before, new, tolerance)
        differences = differences or [f"before, {text}" for text in _differences(after, old, tolerance)]
        return differences[0] if differences else ""

    return differ


def _differences(expected: object, response: Response, tolerance: float) -> list[str]:
    sample = Sample.model_validate(
        {"json": True, "status": response.status, "expect": expected, "tolerance": tolerance}
    )
    return comparison.differences(sample, response)


def _from_file(text: str) -> Agreement:
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
            result = judge(old, new)
        except Exception as error:
            raise TorchmarError(f"{text} failed: {type(error).__name__}: {error}") from error
        if result is False:
            return "they do not agree"
        return "" if result is None or result is True else str(result)

    return differ
