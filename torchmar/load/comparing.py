"""Two reports of load measurements compared, step by step, with the intervals of their ratios."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torchmar.load.few_answers import too_few
from torchmar.load.results import Bounds, Limit, Report, Step
from torchmar.load.statistics import Interval, difference_interval, ratio_interval, share_interval
from torchmar.load.step_label import step_label

Verdict = Literal["better", "same", "worse", "regression", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure of a step in both reports.

    Attributes:
        figure: name with unit, such as ``p99 ms``.
        old: value in the old report.
        new: value in the new report.
        ratio: ratio of new to old; its interval is 0 to infinity if one of the values has none. For failed requests and
            wrong answers it is the difference of their shares.
        of_shares: whether the values are shares of all requests.
        verdict: "regression" if the whole interval is beyond the limit; "better" or "worse" if the whole interval is on
            one side of no change; "same" if it is within the limit on both sides; otherwise "undecided".
    """

    figure: str
    old: float
    new: float
    ratio: Interval
    verdict: Verdict
    of_shares: bool = False


@dataclass(frozen=True, kw_only=True)
class StepComparison:
    """A step of both reports.

    Attributes:
        label: the name of the step.
        changes: figures of the step; empty if it was not compared.
        refused: reason why it was not compared; empty if it was.
        cautions: reasons why its figures are less certain than their intervals.
    """

    label: str
    changes: tuple[Change, ...]
    refused: str = ""
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportComparison:
    """The comparison of two reports.

    Attributes:
        not_comparable: reasons why the figures of the two are not comparable; empty if they are.
        differences: other differences, such as the version of the model, which may explain a change.
        steps: the steps in both reports, and the limits, if both reports have one.
        only_old: labels of the steps that only the old report has.
        only_new: labels of the steps that only the new report has.
        max_regression: share by which a figure may be worse.
    """

    not_comparable: tuple[str, ...]
    differences: tuple[str, ...]
    steps: tuple[StepComparison, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    max_regression: float

    @property
    def regressions(self) -> list[tuple[StepComparison, Change]]:
        """The figures that are worse by more than the limit."""
        return [(step, change) for step in self.steps for change in step.changes if change.verdict == "regression"]

    @property
    def refused(self) -> list[StepComparison]:
        """The steps that were not compared."""
        return [step for step in self.steps if step.refused]

    @property
    def passed(self) -> bool:
        """Whether every step of both reports was compared, at least one of them, and none is worse than the limit."""
        return bool(self.steps) and not self.regressions and not self.refused


def compare(old: Report, new: Report, max_regression: float) -> ReportComparison:
    """Compare two reports.

    Steps are matched by their kind and their rate or connections; of several equal ones, in their order.

    Args:
        old: report to compare with.
        new: report that must not be worse.
        max_regression: share by which a latency may be larger, or the throughput smaller: 0.05 is 5 %.
    """
    old_steps, new_steps = _by_key(old), _by_key(new)
    return ReportComparison(
        not_comparable=tuple(_obstacles(old, new)),
        differences=tuple(_differences(old, new)),
        steps=(
            *(
                _compare_steps(old_steps[key], step, max_regression)
                for key, step in new_steps.items()
                if key in old_steps
            ),
            *_compare_limits(old.limit, new.limit, max_regression),
        ),
        only_old=tuple(step_label(step) for key, step in old_steps.items() if key not in new_steps),
        only_new=tuple(step_label(step) for key, step in new_steps.items() if key not in old_steps),
        max_regression=max_regression,
    )


Key = tuple[str, "str | None", "float | None", int, int]


def _by_key(report: Report) -> dict[Key, Step]:
    """Return the steps by kind, arrivals, rate or connections, and their number among equal steps.

    Steps beyond the limit are left out: they ended early, with a growing queue.
    """
    counts: Counter[tuple[object, ...]] = Counter()
    result: dict[Key, Step] = {}
    for step in report.steps:
        if report.saturated(step):
            continue
        connections = step.connections if step.kind == "closed" else 0
        equal = (step.kind, step.arrivals, step.rate, connections)
        counts[equal] += 1
        result[step.kind, step.arrivals, step.rate, connections, counts[equal]] = step
    return result


def _obstacles(old: Report, new: Report) -> Iterator[str]:
    before, after = old.machine, new.machine
    if before.processor != after.processor or before.cores != after.cores:
        yield (
            f"the machines differ: {before.processor} with {before.cores} cores, "
            f"{after.processor} with {after.cores} cores"
        )
    elif before.flags != after.flags:
        flags = sorted(set(before.flags) ^ set(after.flags))
        yield f"the machines differ: only one of them has {' '.join(flags)}"
    if old.target.model != new.target.model:
        yield f"the models differ: {old.target.model}, {new.target.model}"
    if old.target.local != new.target.local:
        yield "one server was on the machine of the client, the other was not"
    if (old.requests.count, old.requests.bytes) != (new.requests.count, new.requests.bytes):
        yield (
            f"the requests differ: {old.requests.count} of {old.requests.bytes:,} bytes on average, "
            f"{new.requests.count} of {new.requests.bytes:,}"
        )


def _differences(old: Report, new: Report) -> Iterator[str]:
    pairs = (
        ("server", old.target.engine, new.target.engine),
        ("protocol", old.target.protocol, new.target.protocol),
        ("model version", old.target.model_version, new.target.model_version),
        ("archive", old.target.archive_digest[:12], new.target.archive_digest[:12]),
        ("torchmar", old.torchmar, new.torchmar),
        ("Python", old.machine.python, new.machine.python),
        ("system", old.machine.system, new.machine.system),
        ("answers compared", str(old.requests.compared), str(new.requests.compared)),
    )
    for name, before, after in pairs:
        if before != after:
            yield f"{name}: {before or 'not known'} before, {after or 'not known'} now"


def _compare_steps(old: Step, new: Step, limit: float) -> StepComparison:
    label = step_label(new)
    for name, step in (("old", old), ("new", new)):
        if not step.valid:
            reasons = "; ".join(step.invalid_reasons)
            return StepComparison(label=label, changes=(), refused=f"the {name} one is not valid: {reasons}")
    if not (old.latency_ms and old.throughput and new.latency_ms):
        name = "new" if old.latency_ms and old.throughput else "old"
        return StepComparison(label=label, changes=(), refused=f"the {name} one has no answers")
    cautions = []
    for name, step in (("old", old), ("new", new)):
        if not step.stable:
            cautions.append(f"the {name} one is not stable: {step.unstable_reason}")
        if not step.complete:
            cautions.append(f"the {name} one ended early")
        if caution := too_few(step):
            cautions.append(f"the {name} one: {caution}")
    before, after = old.latency_ms, new.latency_ms
    changes = [
        _throughput(
            _interval(old.throughput, old.throughput_interval),
            _interval(new.throughput, new.throughput_interval),
            limit,
        ),
        _latency("p50 ms", _interval(before.p50, before.p50_interval), _interval(after.p50, after.p50_interval), limit),
        _latency("p95 ms", _interval(before.p95, before.p95_interval), _interval(after.p95, after.p95_interval), limit),
        _latency("p99 ms", _interval(before.p99, before.p99_interval), _interval(after.p99, after.p99_interval), limit),
        *_failures(old, new),
    ]
    return StepComparison(label=label, changes=tuple(changes), cautions=tuple(cautions))


def _compare_limits(old: Limit | None, new: Limit | None, limit: float) -> Iterator[StepComparison]:
    """Yield the comparison of the highest rates, from the rates that the server held and did not hold."""
    if old is None or new is None:
        return
    intervals = []
    for name, measured in (("old", old), ("new", new)):
        if measured.rate is None:
            yield StepComparison(label="limit", changes=(), refused=f"the {name} one was not found: {measured.reason}")
            return
        low, high = measured.interval or (measured.rate, math.inf)
        intervals.append(Interval(measured.rate, low, high))
    before, after = intervals
    # These are bounds of the limit, not confidence intervals: the ratio is within the ratios of their ends.
    ratio = Interval(after.value / before.value, after.low / before.high, after.high / before.low)
    slowdown = Interval(before.value / after.value, before.low / after.high, before.high / after.low)
    verdict = _verdict(slowdown, _slowdown(limit))
    change = Change(figure="requests/s", old=before.value, new=after.value, ratio=ratio, verdict=verdict)
    yield StepComparison(label="limit", changes=(change,))


def _slowdown(limit: float) -> float:
    """Return the ratio of the old to the new rate if the new one is smaller by the share ``limit``."""
    return 1 / (1 - limit) if limit < 1 else math.inf


def _interval(value: float, bounds: Bounds | None) -> Interval:
    """Return a value with its interval; without an interval, the value can be anything."""
    return Interval(value, *(bounds or (0.0, math.inf)))


def _latency(figure: str, old: Interval, new: Interval, limit: float) -> Change:
    ratio = ratio_interval(new, old)
    return Change(figure=figure, old=old.value, new=new.value, ratio=ratio, verdict=_verdict(ratio, 1 + limit))


def _throughput(old: Interval, new: Interval, limit: float) -> Change:
    """Return the change of the throughput, for which less is worse: a limit of 5 % is a ratio of 0.95."""
    ratio = ratio_interval(new, old)
    slowdown = ratio_interval(old, new) if new.value else Interval(math.inf, math.inf, math.inf)
    verdict = _verdict(slowdown, _slowdown(limit))
    return Change(figure="answers/s", old=old.value, new=new.value, ratio=ratio, verdict=verdict)


def _verdict(worse: Interval, upper: float) -> Verdict:
    if worse.low > upper:
        return "regression"
    if worse.high < 1:
        return "better"
    if worse.low > 1:
        return "worse"
    return "same" if worse.high <= upper and worse.low >= 1 / upper else "undecided"


def _failures(old: Step, new: Step) -> Iterator[Change]:
    """Yield the changes of the shares of failed requests and wrong answers, if there are any.

    More failures than chance explains are a regression, whatever the limit for latency. Any wrong answer is a
    regression if there was none before.
    """
    for figure, before, after in (
        ("failed", old.failed, new.failed),
        ("wrong answers", old.wrong_answers, new.wrong_answers),
    ):
        if not before and not after:
            continue
        shares = share_interval(min(before, old.sent), old.sent), share_interval(min(after, new.sent), new.sent)
        change = difference_interval(shares[1], shares[0])
        verdict: Verdict = "regression" if change.low > 0 else "better" if change.high < 0 else "undecided"
        if figure == "wrong answers" and after and not before:
            verdict = "regression"
        yield Change(
            figure=figure, old=shares[0].value, new=shares[1].value, ratio=change, verdict=verdict, of_shares=True
        )
