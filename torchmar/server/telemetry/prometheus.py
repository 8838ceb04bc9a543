"""Counters, gauges and histograms, with their output in Prometheus' text format.

The usual library, prometheus_client, writes every counter as ``..._total``, but half of
TorchServe's counters have other names; its updates also take three times as long.

The text format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

# The buckets of TorchServe's histograms: the default of the Java client.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_LABEL = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class MetricSpec:
    """The name, type, help and labels of a metric.

    Attributes:
        name: name, such as ``ts_inference_requests_total``.
        kind: kind of its values: summed, replaced, or counted by size.
        help: description in one line.
        labels: names of the labels that distinguish its series.
        buckets: upper bounds of a histogram, ascending, without the infinite one.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    buckets: Sequence[float] = BUCKETS

    @property
    def sound(self) -> bool:
        """Whether the names are valid in Prometheus."""
        reserved = "le" in self.labels and self.kind == "histogram"
        unique = len(set(self.labels)) == len(self.labels)
        return bool(_NAME.fullmatch(self.name)) and unique and not reserved and all(map(_LABEL.fullmatch, self.labels))

    @property
    def names(self) -> frozenset[str]:
        """The names of its lines."""
        suffixes = ("_bucket", "_count", "_sum") if self.kind == "histogram" else ("",)
        return frozenset(self.name + suffix for suffix in suffixes)


class Child:
    """A series of a metric, with its own values of the labels: a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, value: float) -> None:
        """Take a value."""
        self.value += value

    def lines(self, name: str, labels: str) -> Iterator[tuple[str, str]]:
        """Yield the name of each line and the line."""
        yield name, _line(name, labels, self.value)


class Gauge(Child):
    """The last value."""

    __slots__ = ()

    def add(self, value: float) -> None:
        """Replace the value."""
        self.value = value


class Histogram(Child):
    """Counts of values up to each of several bounds, and their sum.

    Attributes:
        counts: number of values in each bucket; the last bucket is for values above all bounds.
    """

    __slots__ = ("_bounds", "counts")

    def __init__(self, bounds: Sequence[float]) -> None:
        super().__init__()
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.value += value

    def lines(self, name: str, labels: str) -> Iterator[tuple[str, str]]:
        """Yield the name of each line and the line."""
        total = 0
        for bound, count in zip((*self._bounds, math.inf), self.counts, strict=True):
            total += count
            bucket = f"{name}_bucket"
            yield bucket, _line(bucket, f'{labels}le="{_number(bound)}",', total)
        yield f"{name}_count", _line(f"{name}_count", labels, total)
        yield f"{name}_sum", _line(f"{name}_sum", labels, self.value)


class Metric:
    """A metric with its ``series``, by the values of their labels."""

    def __init__(self, spec: MetricSpec) -> None:
        self.spec = spec
        self.series: dict[tuple[str, ...], Child] = {}

    def of(self, *values: str) -> Child:
        """Return the series with these values of the labels; it is created if it does not exist."""
        series = self.series.get(values)
        if series is None:
            kind = self.spec.kind
            series = Histogram(self.spec.buckets) if kind == "histogram" else Gauge() if kind == "gauge" else Child()
            self.series[values] = series
        return series

    def drop(self, *values: str) -> None:
        """Remove a series, if it exists."""
        self.series.pop(values, None)

    def text(self, names: Collection[str] = ()) -> str:
        """Return the metric's lines, or those with one of ``names``; empty if there are none.

        The name of a histogram selects all of its lines.
        """
        spec = self.spec
        all_lines = not names or spec.name in names
        if not all_lines and spec.names.isdisjoint(names):
            return ""
        head = f"# HELP {spec.name} {_escaped(spec.help, quotes=False)}\n# TYPE {spec.name} {spec.kind}\n"
        lines = []
        for values, series in self.series.items():
            labels = "".join(
                f'{name}="{_escaped(value)}",' for name, value in zip(spec.labels, values, strict=True)
            )  # TorchServe's lines also have a comma after the last one
            lines += [line for name, line in series.lines(spec.name, labels) if all_lines or name in names]
        return head + "".join(lines) if lines or not names else ""


def _line(name: str, labels: str, value: float) -> str:
    return f"{name}{{{labels}}} {_number(value)}\n" if labels else f"{name} {_number(value)}\n"


def _number(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}[repr(value)]


def _escaped(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
