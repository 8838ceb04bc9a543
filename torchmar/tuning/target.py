"""The target of a tuning: a limit for the latency, and the objective among the settings that meet it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from torchmar.errors import TorchmarError
from torchmar.load.statistics import least_count

_LATENCY = re.compile(r"\s*(mean|p50|p90|p95|p99|p999)\s*<=?\s*([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s)\s*", re.IGNORECASE)
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h)?\s*", re.IGNORECASE)
_PERCENT = {"mean": None, "p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


class Objective(Enum):
    """The quantity that is optimised among the settings that meet the target."""

    THROUGHPUT = "throughput"  # the highest rate within the target
    LATENCY = "latency"  # the lowest latency at a given rate
    COST = "cost"  # the least memory that meets the target at a given rate


@dataclass(frozen=True, kw_only=True)
class Target:
    """A limit for the latency of requests.

    Attributes:
        name: name of the statistic: mean, p50, p90, p95, p99 or p999.
        seconds: the limit.
    """

    name: str
    seconds: float

    @property
    def percent(self) -> float | None:
        """The percentile; None: the mean."""
        return _PERCENT[self.name]

    @property
    def least_requests(self) -> int:
        """The requests that the statistic needs: `torchmar.load.statistics.LEAST_BEYOND` beyond a percentile."""
        return 1 if self.percent is None else least_count(self.percent)

    def comparable(self, requests: int) -> Target:
        """Return this target, or that of the next lower percentile for which ``requests`` are enough.

        With fewer requests, a percentile is determined by the few slowest ones, at random. The median is compared with
        any number of requests.
        """
        lower = [name for name, percent in _PERCENT.items() if (percent or 100.0) < (self.percent or 0.0)]
        for name in [self.name, *reversed(lower)]:
            target = Target(name=name, seconds=self.seconds)
            if requests >= target.least_requests:
                return target
        return Target(name="p50" if lower else self.name, seconds=self.seconds)

    def __str__(self) -> str:
        return f"{self.name} < {milliseconds(self.seconds)}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """The goal of a search.

    Attributes:
        target: limit for the latency.
        objective: quantity that is optimised among the settings that meet the target.
        rate: requests per second; None for the highest rate.
        memory: limit for the server's memory in bytes; None: no limit.
    """

    target: Target
    objective: Objective
    rate: float | None = None
    memory: int | None = None


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds with three significant digits, as reports show it: ``12.3 ms``."""
    value = seconds * 1000
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} ms"


def parse_target(text: str) -> Target:
    """Return the target of a text such as ``p99<50ms``.

    Raises:
        TorchmarError: the text is no target.
    """
    match = _LATENCY.fullmatch(text)
    if not match or not float(match[2]):
        raise TorchmarError(
            f"{text!r} is no latency target", hint="p99<50ms; also mean, p50, p90, p95, p999, and us or s"
        )
    return Target(name=match[1].lower(), seconds=float(match[2]) * _SECONDS[match[3].lower()])


def parse_duration(text: str) -> float:
    """Return the seconds of a text such as ``5m``, ``90s`` or ``300``.

    Raises:
        TorchmarError: the text is no duration.
    """
    match = _DURATION.fullmatch(text)
    if not match or not float(match[1]):
        raise TorchmarError(f"{text!r} is no time", hint="5m, 90s or 1h")
    return float(match[1]) * _SECONDS[(match[2] or "").lower()]
