"""The percentiles for which a step has too few answers, so that they are random."""

from __future__ import annotations

from torchmar.load.numbers import number
from torchmar.load.recorder import PERCENTILES
from torchmar.load.results import Step
from torchmar.load.statistics import LEAST_BEYOND, least_count

MARK = " ?"  # mark after a percentile in a table
_NAMED = ("p50", "p90", "p95", "p99")  # p99.9 needs 10,000 answers, and is only marked


def too_few(step: Step) -> str:
    """Return a sentence about the percentiles of a step with too few answers; empty if there are none."""
    latency = step.latency_ms
    names = [name for name in _NAMED if latency and name in latency.uncertain]
    if not names:
        return ""
    least = least_count(PERCENTILES[names[-1]])
    beyond = f"{names[-1]} needs {least:,}, so that {LEAST_BEYOND} are beyond it"
    seconds = ""
    if step.throughput and step.kind != "replay":
        seconds = f", which takes {number(float(f'{least / step.throughput:.2g}'))} s"
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{step.histogram.count:,} answers are too few for {listed}; {beyond}{seconds}"
