"""Statements about a report that a reader needs before its figures: faults, cautions, the limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torchmar.load.few_answers import too_few
from torchmar.load.numbers import number
from torchmar.load.results import Limit, Report, Step
from torchmar.load.statistics import LEAST_BEYOND
from torchmar.load.step_label import step_label

Level = Literal["bad", "warn", "note", "good"]


@dataclass(frozen=True)
class Verdict:
    """A statement: its level, its text, and lines with examples or reasons."""

    level: Level
    text: str
    details: str = ""


def verdicts(report: Report) -> Iterator[Verdict]:
    """Yield the statements about a report, the worst first.

    Steps beyond a limit have no cautions: their failures and early ends are what the search expects.
    """
    below = [step for step in report.steps if not report.saturated(step)]
    yield from _faults(report.steps)
    for kind in dict.fromkeys(failure.kind for step in below for failure in step.errors):
        yield _failed(kind, below)
    yield from _cautions(report, below)
    if report.limit:
        yield Verdict("note", _limit(report.limit))
    yield from _good(report, below)
    if not report.requests.compared:
        yield Verdict("note", "Answers were not compared: no request has an expected answer.")
    elif not any(step.wrong_answers for step in report.steps):
        requests = f"{report.requests.compared} of {report.requests.count} requests"
        yield Verdict("good", f"No wrong answer: those to {requests} were compared with the expected ones.")


def _faults(steps: Sequence[Step]) -> Iterator[Verdict]:
    for step in steps:
        if step.wrong_answers:
            text = f"{counted(step.wrong_answers, 'wrong answer')} at {step_label(step)}, with the status of success."
            yield Verdict("bad", text, _line(step.wrong_answer))
    invalid = [step for step in steps if not step.valid]
    if invalid:
        subject = _some(invalid, steps, "valid")
        reasons = [(step, "; ".join(step.invalid_reasons)) for step in invalid]
        yield Verdict("bad", f"{subject}; there are no figures of {_them(invalid)}.", _each(reasons))


def _cautions(report: Report, below: Sequence[Step]) -> Iterator[Verdict]:
    """Yield the reasons why the figures of steps below the limit are less certain."""
    unstable = [step for step in below if step.valid and not step.stable]
    if unstable:
        reasons = [(step, step.unstable_reason) for step in unstable]
        yield Verdict("warn", f"{_some(unstable, report.steps, 'stable')}.", _each(reasons))
    doubts = [(step, text) for step in below if step.valid and (text := too_few(step))]
    if doubts:
        percentiles = "percentiles of " + (step_label(doubts[0][0]) if len(doubts) == 1 else f"{len(doubts)} steps")
        yield Verdict("warn", f"Some {percentiles} have fewer than {LEAST_BEYOND} answers beyond them.", _each(doubts))
    for step in below:
        if not step.complete:
            yield Verdict("warn", f"{step_label(step)} ended early, after {number(step.duration_s)} s.")
    if not report.complete:
        yield Verdict("warn", "The measurement was interrupted: steps are missing.")
    if not report.steps:
        yield Verdict("warn", "There is no step.")


def _good(report: Report, below: Sequence[Step]) -> Iterator[Verdict]:
    good_steps = [step for step in below if step.valid and step.stable]
    if not good_steps:
        return
    to_limit = " up to the limit" if len(below) < len(report.steps) else ""
    every_step = f"All {len(below)} steps{to_limit} are" if len(below) > 1 else f"The step{to_limit} is"
    subject = every_step if len(good_steps) == len(below) else f"{len(good_steps)} of {len(below)} steps{to_limit} are"
    sent, failed = sum(step.sent for step in below), sum(step.failed for step in below)
    errors = f"{failed:,} failed" if failed else "none failed"
    yield Verdict("good", f"{subject} valid and stable; of {counted(sent, 'request')} {errors}.")


def _some(subset: Sequence[Step], steps: Sequence[Step], state: str) -> str:
    """Return ``200/s is not STATE``, ``2 of 5 steps are not STATE`` or ``none of 5 steps is STATE``."""
    if len(subset) == 1:
        return f"{step_label(subset[0])} is not {state}"
    if len(subset) == len(steps):
        return f"None of {len(steps)} steps is {state}"
    return f"{len(subset)} of {len(steps)} steps are not {state}"


def _them(steps: Sequence[Step]) -> str:
    return "it" if len(steps) == 1 else "them"


def _each(texts: Sequence[tuple[Step, str]]) -> str:
    """Return a line for each step, with its name if there are several."""
    return "\n".join(f"{step_label(step)}: {text}" if len(texts) > 1 else text for step, text in texts)


def _failed(kind: str, steps: Sequence[Step]) -> Verdict:
    """Return the statement about requests that failed in one way: their number in each step, and an example."""
    counts = [(step, failure) for step in steps for failure in step.errors if failure.kind == kind]
    parts = [
        f"{failure.count:,} of {step.sent:,} ({failure.count / max(1, step.sent):.2%}) at {step_label(step)}"
        for step, failure in counts
    ]
    return Verdict("warn", f"Requests failed with {kind}: {', '.join(parts)}.", _line(counts[0][1].example))


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _limit(limit: Limit) -> str:
    if limit.rate is None:
        return f"No limit was found: {limit.reason}."
    if limit.interval is None:
        return f"The server holds more than {number(limit.rate)} requests/s: {limit.reason}."
    low, high = map(number, limit.interval)
    return f"The server holds {low} requests/s, and not {high}: {limit.reason}."


def counted(count: int, noun: str) -> str:
    """Return ``1 request`` or ``2,000 requests``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
