"""The terminal output of a load measurement: progress, the table of steps, notes about them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.markup import escape

from torchmar.cli.terminal import err, out, show_table, table, wrapped
from torchmar.engines import TITLES
from torchmar.load.few_answers import MARK, too_few
from torchmar.load.kinds import PROTOCOL_TITLES
from torchmar.load.numbers import number
from torchmar.load.step_label import step_label

if TYPE_CHECKING:
    from rich.table import Table

    from torchmar.load.measuring import Progress, StepSpec
    from torchmar.load.results import Bounds, Report, Step
    from torchmar.load.session import Session

_OPTIONAL = ("p95", "max")
_GAP = 3
_SERVER = ("step", "in server", "queue", "pre", "model", "post", "batch", "cores", "MiB")


class Display:
    """One line of progress on a terminal; a context manager.

    The line is written directly, because drawing a display takes milliseconds, in which no request is sent.
    """

    def __init__(self) -> None:
        self._shown = False

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._write("")

    def begin(self, session: Session) -> None:
        """Print notes about the requests before the load."""
        if names := session.expectations.varying:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            err.print(
                f"[yellow]warning:[/] {len(names)} of {len(session.workload.cases)} requests get answers that differ "
                f"without load, too, and are not compared: {escape(listed)}"
            )

    def progress(self, progress: Progress) -> None:
        """Show the state of a step."""
        name = _spec_name(progress.spec)
        if progress.elapsed_s < 0:
            self._write(f"{name}: warm-up")
            return
        parts = [
            f"{progress.elapsed_s:.0f} of {progress.spec.duration_s:g} s",
            f"{progress.answered} answers",
            f"{progress.in_flight} in flight",
        ]
        if progress.failed:
            parts.append(f"{progress.failed} errors")
        if progress.wrong:
            parts.append(f"{progress.wrong} wrong")
        if progress.p50_ms is not None and progress.p99_ms is not None:
            parts.append(f"p50 {number(progress.p50_ms)} ms, p99 {number(progress.p99_ms)} ms")
        self._write(f"{name}: {', '.join(parts)}")

    def _write(self, text: str) -> None:
        if not err.is_terminal or not (text or self._shown):
            return
        sys.stderr.write(f"\r\x1b[K{text[: max(20, err.width - 1)]}")
        sys.stderr.flush()
        self._shown = bool(text)


def show(report: Report) -> None:
    """Print a report."""
    out.print(_heading(report), markup=False)
    if not report.steps:
        out.print("nothing was measured")
        return
    show_table(_steps(report))
    if rows := list(_server_rows(report)):
        out.print()
        columns = [place for place in range(len(_SERVER)) if any(row[place] for row in rows)]
        headings = [_SERVER[place] for place in columns]
        show_table(table(headings, [[row[place] for place in columns] for row in rows], right=headings[1:]))
        if any(step.server for step in report.steps):
            out.print("mean ms of a request by the server's own metrics, warm-up included; requests in a batch")
        if elsewhere := max((step.processes.replicas_elsewhere if step.processes else 0) for step in report.steps):
            counted = f"{elsewhere} replica{'s' * (elsewhere != 1)}"
            out.print(f"cores and MiB include {counted} on other machines, without Ray's own processes there")
    notes = [note for step in report.steps for note in _notes(step)]
    if notes:
        out.print()
    for colour, label, text in notes:
        line = escape(wrapped(f"{label}: {text}", "", "  "))
        out.print(f"[{colour}]{label}:[/]{line.removeprefix(f'{label}:')}")
    if report.limit is not None:
        out.print()
        _show_limit(report)
    if not report.complete:
        out.print("[yellow]incomplete:[/] the measurement ended early")


def _heading(report: Report) -> str:
    target, requests = report.target, report.requests
    model = f"{target.model} {target.model_version}".rstrip()
    engine = next((title for name, title in TITLES.items() if name == target.engine), "")
    lines = [f"{model} at {target.url}, " + (f"{engine}, " if engine else "") + PROTOCOL_TITLES[target.protocol]]
    compared = "all" if requests.compared == requests.count else f"{requests.compared} of them"
    lines.append(
        f"{requests.count} request{'s' * (requests.count != 1)} of {requests.bytes} bytes from {requests.source}; "
        f"the answers to {compared} are compared"
    )
    if report.steps:
        first = report.steps[0]
        kinds = {"open": "open loop", "closed": "closed loop", "replay": "replay of an access log"}
        since = "sending" if first.kind == "closed" else "the time when a request was to be sent"
        arrivals = (
            f", {'Poisson' if first.arrivals == 'poisson' else first.arrivals} arrivals" if first.arrivals else ""
        )
        lines.append(f"{kinds[first.kind]}{arrivals}; latency in ms from {since}, ± with 95 % confidence")
    return "\n".join(wrapped(line, "", "  ") for line in lines) + "\n"


def _steps(report: Report) -> Table:
    """Return the table of steps; if the terminal is too narrow, without the columns of `_OPTIONAL`."""
    headings = ("step", "answers/s", "p50", "p95", "p99", "max", "errors", "wrong")
    rows = [headings, *map(_row, report.steps)]
    columns = list(range(len(headings)))
    for name in _OPTIONAL:
        if (
            sys.stdout.isatty()
            and sum(max(len(row[place]) for row in rows) + _GAP for place in columns) - _GAP > out.width
        ):
            columns.remove(headings.index(name))
    titles, *body = [[row[place] for place in columns] for row in rows]
    return table(titles, body, right=titles[1:])


def _row(step: Step) -> tuple[str, ...]:
    name = step_label(step)
    if not step.valid:
        return (name, "invalid", "", "", "", "", "", "")
    latency = step.latency_ms
    errors = (str(step.failed), str(step.wrong_answers))
    if latency is None:
        return (name, number(step.throughput, fixed=True), "", "", "", "", *errors)
    return (
        name,
        _with(step.throughput, step.throughput_interval),
        *(
            _with(value, bounds) + (MARK if name in latency.uncertain else "")
            for name, value, bounds in (
                ("p50", latency.p50, latency.p50_interval),
                ("p95", latency.p95, latency.p95_interval),
                ("p99", latency.p99, latency.p99_interval),
            )
        ),
        number(latency.max, fixed=True),
        *errors,
    )


def _server_rows(report: Report) -> Iterator[tuple[str, ...]]:
    for step in report.steps:
        split, processes = step.server, step.processes
        if not step.valid or (split is None and processes is None):
            continue
        parts = ("total_ms", "queue_ms", "preprocess_ms", "inference_ms", "postprocess_ms")
        values = [getattr(split, part, None) for part in parts]
        sizes = (split.batch_sizes if split else None) or {}
        usual = max(sizes, key=lambda size: sizes[size], default=None)
        yield (
            step_label(step),
            *("" if value is None else number(value, fixed=True) for value in values),
            "" if usual is None else _batch(usual),
            f"{processes.cpu_cores:.2f}" if processes else "",
            str(processes.memory_bytes >> 20) if processes else "",
        )


def _notes(step: Step) -> Iterator[tuple[str, str, str]]:
    """Yield the notes about a step: colour, label, text."""
    name = step_label(step)
    if step.invalid_reasons:
        yield "red", "invalid", f"{name}: {'; '.join(step.invalid_reasons)}"
    if step.wrong_answers:
        yield "red", "wrong", f"{name}: {step.wrong_answers} answers differ, such as {_line(step.wrong_answer)}"
    for failure in step.errors:
        yield "yellow", "errors", f"{name}: {failure.count} {failure.kind}, such as {_line(failure.example)}"
    if step.valid and (text := too_few(step)):
        yield "yellow", f"too few ({MARK.strip()})", f"{name}: {text}"
    if step.complete and step.valid and not step.stable:
        yield "yellow", "not stable", f"{name}: {step.unstable_reason}"


def _show_limit(report: Report) -> None:
    limit = report.limit
    assert limit is not None
    if limit.rate is None:
        out.print(wrapped(f"no limit: {limit.reason}", "", "  "), markup=False)
    elif limit.interval is None:
        text = f"the limit is more than {number(limit.rate)} requests a second: {limit.reason}"
        out.print(wrapped(text, "", "  "), markup=False)
    else:
        low, high = limit.interval
        text = f"the server holds {number(low)} requests a second, and not {number(high)}: {limit.reason}"
        out.print(wrapped(text, "", "  "), markup=False)


def _spec_name(spec: StepSpec) -> str:
    if spec.kind == "closed":
        return f"{spec.connections} connection{'s' * (spec.connections != 1)}"
    return "replay" if spec.kind == "replay" else f"{number(spec.rate or 0)}/s"


def _batch(size: int) -> str:
    """Return the name of a bucket of batch sizes."""
    return "> 256" if not size else str(size) if size <= 2 else f"{size // 2 + 1}-{size}"


def _with(value: float, bounds: Bounds | None) -> str:
    """Return a value with half of the width of its interval."""
    if bounds is None:
        return number(value, fixed=True)
    return f"{number(value, fixed=True)} ±{_half(bounds)}"


def _half(bounds: Bounds) -> str:
    """Return half of the width of an interval with two significant digits; as a whole number from 10."""
    half = (bounds[1] - bounds[0]) / 2
    return f"{half:,.0f}" if half >= 10 else f"{half:.1f}" if half >= 1 else f"{half:.2f}"


def _line(text: str) -> str:
    """Return a text as one line of limited length."""
    return " ".join(text.split())[:160]
