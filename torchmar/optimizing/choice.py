"""The choice among the variants that passed the gate, by their measured times; pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from torchmar.load.statistics import Interval, around, grouped, ratio_interval
from torchmar.optimizing.results import Row, Timing, Verdict

LEAST_GAIN = 1.05
"""A smaller speedup does not justify further files, further requirements and slightly different answers."""


def timing(batch_size: int, *measurements: Sequence[float]) -> Timing:
    """Return the median of measured calls, with the interval from the means of their groups.

    Args:
        batch_size: batch size of the calls.
        measurements: seconds of each call, in their order. With several measurements at different times, the
            interval covers that of each, because the machine's speed may have changed between them.
    """
    intervals = []
    for seconds in measurements:
        median = statistics.median(seconds)
        intervals.append(around(median, [statistics.median(group) for group in grouped(seconds)]) or _point(median))
    return Timing(
        batch_size=batch_size,
        seconds=statistics.median(itertools.chain(*measurements)),
        interval=(min(interval.low for interval in intervals), max(interval.high for interval in intervals)),
        runs=sum(map(len, measurements)),
    )


def _point(value: float) -> Interval:
    return Interval(value, value, value)


def speedup(row: Row, baseline: Row, batch_size: int) -> Interval | None:
    """Return the speedup of a variant over the baseline; None: one of the two was not measured."""
    measured, base = row.timing(batch_size), baseline.timing(batch_size)
    if measured is None or base is None:
        return None
    return ratio_interval(Interval(base.seconds, *base.interval), Interval(measured.seconds, *measured.interval))


def choose(rows: Sequence[Row], batch_sizes: Sequence[int]) -> tuple[Row, ...]:
    """Return the rows with the fastest variant marked as chosen, and with the reason why each other one was not.

    Candidates are rows with the verdict `Verdict.SLOWER` (they passed the gate) that are `LEAST_GAIN` times faster than
    the baseline even at the low end of their interval. The candidate with the least median time of the first batch size
    is chosen; or one whose answers are closer to the baseline's, if the fastest is not `LEAST_GAIN` times faster than
    it.

    Args:
        rows: rows of the report, the baseline first.
        batch_sizes: measured batch sizes; the first one decides.
    """
    baseline, size = rows[0], batch_sizes[0]
    gains = {row.variant: speedup(row, baseline, size) for row in rows if row.verdict is Verdict.SLOWER}
    candidates = {name: gain.value for name, gain in gains.items() if gain is not None and gain.low >= LEAST_GAIN}
    fastest = max(candidates.values(), default=0.0)
    equal = [row for row in rows if candidates.get(row.variant, 0) * LEAST_GAIN > fastest]
    best = min(equal, key=lambda row: (_error(row), -candidates[row.variant]), default=None)
    return tuple(_decided(row, gains, best, rows) for row in rows)


def _error(row: Row) -> float:
    return row.agreement.relative_error if row.agreement else math.inf


def _decided(row: Row, gains: dict[str, Interval | None], best: Row | None, rows: Sequence[Row]) -> Row:
    if row.variant == "baseline":
        reason = "what the others are compared with" if best else f"it stays: {_why_original(gains, rows)}"
        return replace(row, reason=reason)
    if row.variant not in gains:
        return row
    gain = gains[row.variant]
    if gain is None:
        return replace(row, reason="it was not timed")
    if row is best:
        return replace(row, verdict=Verdict.CHOSEN, reason=f"{times(gain.value)} as fast as the original")
    if gain.low < LEAST_GAIN:
        text = f"{times(gain.value)} as fast as the original"
        if gain.value >= LEAST_GAIN:
            text += f", which may be chance ({times(gain.low)} to {times(gain.high)} with 95 % confidence)"
        return replace(row, reason=text)
    assert best is not None
    winner = gains[best.variant]
    assert winner is not None
    comparison = "is faster" if winner.value > gain.value else "is as fast, and nearer to its answers"
    return replace(row, reason=f"{times(gain.value)} as fast as the original; {best.title} {comparison}")


def _why_original(gains: dict[str, Interval | None], rows: Sequence[Row]) -> str:
    """Return the reason why nothing was chosen, with the most promising variant if one may be faster."""
    timed = {name: gain for name, gain in gains.items() if gain is not None}
    if timed:
        name, gain = max(timed.items(), key=lambda item: item[1].value)
        if gain.value <= 1 or gain.high < LEAST_GAIN:
            return "nothing that agrees with it is faster"
        title = next(row.title for row in rows if row.variant == name)
        return (
            f"nothing that agrees with it is certainly faster; the most promising is {title}, {times(gain.value)} as "
            f"fast ({times(gain.low).removesuffix(' times')} to {times(gain.high)} with 95 % confidence)"
        )
    verdicts = {row.verdict for row in rows}
    if Verdict.UNDECIDED in verdicts:
        return "there are too few inputs to show that another agrees with it"
    return "nothing agrees with it" if Verdict.REJECTED in verdicts else "nothing else was measured"


def times(value: float) -> str:
    """Return a ratio as text: ``3.4 times``."""
    return f"{value:.0f} times" if value >= 100 else f"{value:.1f} times" if value >= 2 else f"{value:.2f} times"
