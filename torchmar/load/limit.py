"""The search for the highest rate that a server holds: raise the rate until the server saturates, then bisect."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torchmar.load import statistics
from torchmar.load.recorder import Recorder
from torchmar.load.results import Limit, Step, Window

#: The search ends when the lowest saturating rate is within this share of the highest rate that holds.
PRECISION = 0.05
INTERRUPTED = "interrupted"
_RAISE = 1.5
_MIN_RATE = 0.1
_MIN_REQUESTS = 20  # requests of a step; with fewer, a lower rate cannot be judged
_MAX_STEPS = 24
_TRIES = 3  # attempts at a rate, if other programs or the client spoil its steps
_CONFIDENCE = 0.99
_MIN_WINDOWS = 6
#: Growth of the requests in flight, as a share of the rate, above which requests are not answered in time.
_GROWTH = 0.02
_MIN_IN_FLIGHT = 8
_MAX_FAILED = 0.01

#: Measures a step at a rate.
Run = Callable[[float], Step]


def saturation(windows: Sequence[Window], rate: float) -> str:
    """Return a sign that requests arrive faster than they are answered; empty if there is none.

    Both the requests in flight and the latency have to rise: the line through the windows has a slope above 0 with 99 %
    confidence, and the requests in flight grow by at least 2 % of the rate. The idea is from GuideLLM's detector of
    over-saturation.

    Args:
        windows: windows of a step so far.
        rate: intended requests per second.
    """
    if len(windows) < _MIN_WINDOWS or windows[-1].in_flight < _MIN_IN_FLIGHT:
        return ""
    ends = [window.start_s + window.duration_s for window in windows]
    in_flight = statistics.slope_interval(ends, [float(window.in_flight) for window in windows], _CONFIDENCE)
    measured = [(end, window.p50_ms) for end, window in zip(ends, windows, strict=True) if window.p50_ms is not None]
    # If the latency is longer than a window, requests of the last windows have no answer yet.
    latency = statistics.slope_interval([end for end, _ in measured], [value for _, value in measured], _CONFIDENCE)
    if in_flight is None or in_flight.low < _GROWTH * rate:
        return ""
    if latency is not None and latency.low <= 0:
        return ""
    return (
        f"requests in flight grow by {in_flight.value:.3g} a second "
        f"({in_flight.low:.3g} to {in_flight.high:.3g} with 99 % confidence)"
    )


def stop_at(rate: float) -> Callable[[Recorder, float], str]:
    """Return a function that ends a step as soon as the server is saturated."""
    previous = 0

    def stop(recorder: Recorder, now: float) -> str:
        nonlocal previous
        count = int((now - recorder.start) / recorder.window_s)
        if count == previous or count < _MIN_WINDOWS:
            return ""
        previous = count
        return saturation(recorder.windows(now), rate)

    return stop


def does_not_hold(step: Step) -> str:
    """Return the reason why a server does not hold the rate of a step; empty if it does."""
    assert step.rate is not None
    if reason := saturation(step.windows, step.rate):
        return reason
    if not step.complete:
        return "the step ended early"
    if step.sent and step.failed > _MAX_FAILED * step.sent:
        return f"{step.failed / step.sent:.1%} of the requests failed, most with {step.errors[0].kind}"
    # The intended requests of the windows, not the rate: in a Poisson process their number varies.
    intended = sum(window.sent for window in step.windows) / max(step.duration_s, 1e-9)
    high = step.throughput_interval[1] if step.throughput_interval else step.throughput
    if high < (1 - _GROWTH) * intended and step.throughput < (1 - _GROWTH) * intended:
        return f"{step.throughput:.4g} right answers a second to {intended:.4g} requests"
    return ""


def find_limit(run: Run, start: float, steps: list[Step], precision: float = PRECISION) -> Limit:
    """Find the highest rate that a server holds.

    Args:
        run: measures a step at a rate; it ends the step when the server is saturated (`stop_at`).
        start: first rate to measure.
        steps: list to which each measured step is added, so that an interruption keeps them.
        precision: share by which the two last rates may differ.

    Returns:
        The rate; None if every rate saturated the server, or if all tries of one rate were invalid.
    """
    held: Step | None = None
    failed: Step | None = None
    reason = ""
    rate = start
    for _ in range(_MAX_STEPS):
        step = _measured(run, rate, steps)
        if _interrupted(step, rate):
            return Limit(rate=None, interval=None, reason=INTERRUPTED)
        if not step.valid:
            return Limit(rate=None, interval=None, reason=_spoiled(step, held))
        if sign := does_not_hold(step):
            failed, reason = step, sign
        else:
            held = step
        if (following := _next_rate(step, rate, held, failed, precision)) is None:
            break
        rate = following
    if held is None:
        return Limit(rate=None, interval=None, reason=f"no rate holds: {reason}")
    if failed is None:
        return Limit(rate=held.rate, interval=None, reason=f"no rate saturated the server in {_MAX_STEPS} steps")
    return Limit(rate=held.rate, interval=(held.rate or 0.0, failed.rate or 0.0), reason=reason)


def _measured(run: Run, rate: float, steps: list[Step]) -> Step:
    """Measure a rate until a step is valid or interrupted, a few times at most; return the last step."""
    for _ in range(_TRIES):
        step = run(rate)
        steps.append(step)
        if step.valid or _interrupted(step, rate):
            break
    return step


def _interrupted(step: Step, rate: float) -> bool:
    """Return whether a step ended early for another reason than a saturated server."""
    return not step.complete and not saturation(step.windows, rate)


def _next_rate(step: Step, rate: float, held: Step | None, failed: Step | None, precision: float) -> float | None:
    """Return the rate to measure next; None: the rates are close enough, or too low for a measurement.

    Args:
        step: the previous step.
        rate: its rate.
        held: the step at the highest rate that the server holds; None: it has held none.
        failed: the last step that the server did not hold; None: it has held all.
        precision: the share by which the two rates may differ.
    """
    if held is None:
        return rate / 2 if step.sent >= _MIN_REQUESTS else None
    if failed is None:
        return rate * _RAISE
    low, high = held.rate or 0.0, failed.rate or math.inf
    return math.sqrt(low * high) if high > low * (1 + precision) else None


def _spoiled(step: Step, held: Step | None) -> str:
    reason = f"the step at {step.rate:.4g}/s is invalid, {_TRIES} times in turn: {'; '.join(step.invalid_reasons)}"
    return reason if held is None else f"{reason}; the server holds {held.rate:.4g}/s"


def first_rate(throughput: float) -> float:
    """Return the first rate for the search: half of the throughput of a short closed loop."""
    return max(_MIN_RATE, float(f"{throughput / 2:.2g}"))
