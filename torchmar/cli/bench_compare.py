"""``torchmar bench compare``: two reports of load, and whether the second is worse."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from torchmar.cli.options import AsJson, share
from torchmar.cli.terminal import out, show_table, table, wrapped
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.load.comparing import Change, ReportComparison


def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="The report before a change.", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="The report after it.", show_default=False)],
    max_regression: Annotated[str, typer.Option(metavar="SHARE", help="How much worse a figure may be.")] = "5%",
    allow_different: Annotated[
        bool, typer.Option("--allow-different", help="Compare even if machines, models or requests differ.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two reports, step by step.

    Exit code 1: a figure is worse by more than the limit, with 95 %
    confidence; more requests failed; or a step is not valid in one of them.
    """
    from torchmar.load import comparing, results

    result = comparing.compare(results.read(old), results.read(new), share(max_regression))
    if result.not_comparable and not allow_different:
        raise TorchmarError(
            "not comparable: " + "; ".join(result.not_comparable),
            hint="measure both on one machine with the same requests, or add --allow-different",
        )
    if not result.steps:
        steps = ", ".join(result.only_old) or "none", ", ".join(result.only_new) or "none"
        raise TorchmarError(
            f"the reports have no step in common: {old} has {steps[0]}; {new} has {steps[1]}",
            hint="measure the same rates or connections",
        )
    if as_json:
        typer.echo(json.dumps(_document(result), indent=2))
    else:
        _show(result)
    raise typer.Exit(0 if result.passed else 1)


_COLOURS = {"regression": "red", "better": "green", "worse": "yellow"}


def _show(result: ReportComparison) -> None:
    for text in (*result.not_comparable, *result.differences):
        out.print(wrapped(text, "", "  "), markup=False)
    compared = [step for step in result.steps if not step.refused]
    if compared:
        show_table(
            table(("step", "", "before", "now", "ratio", "95 %", ""), _rows(result), right=("before", "now", "ratio"))
        )
        out.print()
    for step in result.steps:
        if step.refused:
            out.print(wrapped(f"{step.label} is not compared: {step.refused}", "", "  "), style="red", markup=False)
        for caution in step.cautions:
            out.print(wrapped(f"{step.label}: {caution}", "", "  "), style="yellow", markup=False)
    for name, labels in (("before", result.only_old), ("now", result.only_new)):
        if labels:
            out.print(wrapped(f"only {name}: {', '.join(labels)}", "", "  "), markup=False)
    out.print(_verdict(result))


def _rows(result: ReportComparison) -> Iterator[tuple[str, ...]]:
    for step in result.steps:
        for index, change in enumerate(step.changes):
            yield (step.label if not index else "", change.figure, *_figures(change), change.verdict)


def _figures(change: Change) -> tuple[str, str, str, str]:
    from torchmar.load.numbers import number

    ratio = change.ratio
    if change.of_shares:
        ends = f"{ratio.low:+.2%} – {ratio.high:+.2%}"
        return f"{change.old:.2%}", f"{change.new:.2%}", f"{ratio.value:+.2%}", ends
    high = "∞" if math.isinf(ratio.high) else f"{ratio.high:.3f}"
    ends = f"{ratio.low:.3f} – {high}" if ratio.low or math.isfinite(ratio.high) else "no interval"
    return number(change.old, fixed=True), number(change.new, fixed=True), f"{ratio.value:.3f}", ends


def _verdict(result: ReportComparison) -> str:
    limit = f"{100 * result.max_regression:.3g} %"
    if result.passed:
        undecided = sum(change.verdict == "undecided" for step in result.steps for change in step.changes)
        note = f"; {undecided} figures are undecided, longer steps make intervals smaller" if undecided else ""
        return f"[green]passed[/]: no figure is shown to be worse by more than {limit}{note}"
    parts = []
    if result.regressions:
        names = ", ".join(f"{change.figure} at {step.label}" for step, change in result.regressions)
        parts.append(f"worse by more than {limit}: {names}")
    if result.refused:
        parts.append(f"not compared: {', '.join(step.label for step in result.refused)}")
    return f"[red]failed[/]: {escape('; '.join(parts))}"


def _document(result: ReportComparison) -> dict[str, Any]:
    document = {"passed": result.passed, **asdict(result)}
    for step in document["steps"]:
        for change in step["changes"]:
            # JSON has no infinity.
            change["ratio"] = {end: value if math.isfinite(value) else None for end, value in change["ratio"].items()}
    return document
