"""The terminal output of an optimisation: progress, the table of variants, the choice."""

from __future__ import annotations

from rich.markup import escape

from torchmar.cli.progress import StepLine
from torchmar.cli.terminal import err, out, show_table, table, wrapped
from torchmar.optimizing.results import Report, Row, Verdict
from torchmar.tuning.target import milliseconds

_WIDE = 100  # columns of a terminal with room for the time of loading and the memory, too
_SHOWN_FLAGS = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


class Display(StepLine):
    """The progress: the current step, and a line for each variant."""

    def on_warning(self, text: str) -> None:
        """Print a warning."""
        self.on_step("")
        err.print(f"[yellow]warning:[/] {escape(text)}")

    def on_row(self, row: Row, baseline: Row, number: int, total: int) -> None:
        """Print a line for a variant."""
        if row.verdict is Verdict.SKIPPED:  # for reasons that many variants have in common; they follow the table
            return
        self.on_step("")
        count = f"{number}/{total}".rjust(2 * len(str(total)) + 1)
        if row.verdict is Verdict.FAILED:
            text = f"failed: {row.reason}"
        else:
            text = _latency(row, row.timings[0].batch_size) if row.timings else "not timed"
            if row.timings and row is not baseline:
                text += f", {_gain(row, baseline, row.timings[0].batch_size)}"
            if row.verdict in (Verdict.REJECTED, Verdict.UNDECIDED):
                text += f", {row.verdict.value}"
        err.print(f"{count} {row.variant}: {text}"[: err.width if err.is_terminal else None], markup=False)


def show(report: Report) -> None:
    """Print a report: the table of variants, the reasons against them, and the choice."""
    _show_conditions(report)
    _show_table(report)
    _show_reasons(report)
    out.print()
    if chosen := report.chosen:
        needs = f"; it needs {' and '.join(chosen.needs)}" if chosen.needs else ""
        out.print(f"[bold]{escape(chosen.title)}[/]: {escape(chosen.reason + needs)}")
    else:
        reason = wrapped(f"The original stays: {report.baseline.reason.removeprefix('it stays: ')}", "", "")
        out.print(escape(reason).replace("The original stays:", "[bold]The original stays:[/]", 1))


def _show_conditions(report: Report) -> None:
    machine = report.machine
    flags = [flag for flag in machine.flags if flag in _SHOWN_FLAGS]
    out.print(
        wrapped(
            f"{report.name} {report.version}, {report.threads} thread{'s' * (report.threads != 1)} on "
            + machine.processor
            + (f" ({', '.join(flags)})" if flags else ""),
            "",
            "",
        ),
        markup=False,
    )
    calibration = f", {report.calibration_inputs} more for calibration" if report.calibration_inputs else ""
    out.print(
        wrapped(
            f"answers compared on {report.inputs} input{'s' * (report.inputs != 1)}{calibration}; required: "
            f"{' and '.join(report.requirements)}",
            "",
            "",
        )
        + "\n",
        markup=False,
    )


def _show_table(report: Report) -> None:
    labels = any(requirement.startswith("labels") for requirement in report.requirements)
    wide = not out.is_terminal or out.width >= _WIDE
    headings = ["variant", *_batch_headings(report), "size", *(("load", "memory") if wide else ())]
    headings += ["labels" if labels else "cosine", "verdict"]
    rows = [_cells(report, row, labels=labels, wide=wide) for row in report.rows if row.timings]
    show_table(table(headings, rows, right=headings[1:-1]))
    out.print()


def _cells(report: Report, row: Row, *, labels: bool, wide: bool) -> list[str]:
    baseline, cells = report.baseline, [row.variant]
    for size in report.batch_sizes:
        cells.append(_latency(row, size))
        if size == report.batch_sizes[0]:
            cells.append("" if row is baseline else _gain(row, baseline, size))
    cells.append(_bytes(row.size))
    if wide:
        cells += ["" if row.load_seconds is None else f"{row.load_seconds:.1f} s", _bytes(row.memory)]
    return [*cells, _agreement(row, labels), "" if row is baseline else row.verdict.value]


def _show_reasons(report: Report) -> None:
    reasons: dict[str, list[str]] = {}
    for row in report.rows:
        # The table shows how much slower a variant is.
        if row.verdict not in (Verdict.BASELINE, Verdict.CHOSEN, Verdict.SLOWER) or "chance" in row.reason:
            reasons.setdefault(f"{row.verdict.value}: {row.reason}", []).append(row.variant)
    for reason, names in reasons.items():
        out.print(wrapped(f"{', '.join(names)}: {reason}", "- ", "  "), markup=False)
    for disturbance in report.disturbances:
        out.print(wrapped(f"disturbed: {disturbance}", "- ", "  "), markup=False)


def _batch_headings(report: Report) -> list[str]:
    headings: list[str] = []
    for size in report.batch_sizes:
        headings.append(f"batch {size}")
        if size == report.batch_sizes[0]:
            headings.append("faster")
    return headings


def _latency(row: Row, size: int) -> str:
    timing = row.timing(size)
    return "" if timing is None else milliseconds(timing.seconds)


def _gain(row: Row, baseline: Row, size: int) -> str:
    timing, reference = row.timing(size), baseline.timing(size)
    if timing is None or reference is None:
        return ""
    value = reference.seconds / timing.seconds
    return f"{value:.0f}x" if value >= 100 else f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def _bytes(count: int | None) -> str:
    if count is None:
        return ""
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if value >= 10 or units[0] == "B" else f"{value:.1f} {units[0]}"


def _agreement(row: Row, labels: bool) -> str:
    if row.agreement is None:
        return ""
    if not labels:
        return f"{row.agreement.cosine:.5f}"
    share = row.agreement.labels
    if share is None:
        return ""
    # A share just below 1 must not be shown as 100 %.
    return "100 %" if share == 1 else f"{min(share, 0.999):.1%}".replace("%", " %")
