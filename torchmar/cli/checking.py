"""The command that checks recipes and archives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.archive.built_archive import show_size
from torchmar.cli.options import AsJson, Ignore, Select
from torchmar.cli.terminal import err, out, show_table, table

if TYPE_CHECKING:
    from torchmar.checks import Finding
    from torchmar.sample_check import SampleReport


def check(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="ARCHIVE|RECIPE|FOLDER", help="The archives or recipes to check.", show_default=False),
    ],
    run: Annotated[bool, typer.Option("--run", help="Run the samples, too, in a worker process.")] = False,
    select: Select = None,
    ignore: Ignore = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="The number of GPUs of the server.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find what would fail on a server, before any server loads it.

    No code of the archive is run, except with --run. Exit code 1: there is an
    error; with --strict also: a warning. docs/checks.md has a section for every
    code.
    """
    from torchmar import checks

    failed = False
    documents = []
    for path in paths:
        findings = [finding for finding in checks.check(path, gpus) if _is_wanted(finding, select, ignore)]
        errors = [finding for finding in findings if finding.severity == "error"]
        failed |= bool(findings if strict else errors)
        report = _run_samples(path) if run and not errors else None
        failed |= bool(report and report.problems)
        if as_json:
            documents.append(_document(path, findings, report))
            continue
        for finding in findings:
            _show(path, finding)
        if report:
            _show_report(path, report)
        elif run:
            err.print(f"{path}: not run, because of the errors above", markup=False)
        if not findings and not report:
            out.print(f"[green]ok[/] {escape(str(path))}")
    if as_json:
        typer.echo(json.dumps(documents, indent=2, ensure_ascii=False))
    raise typer.Exit(1 if failed else 0)


def _run_samples(path: Path) -> SampleReport:
    import tempfile

    from torchmar import archive, recipe
    from torchmar.sample_check import run_samples

    with err.status(f"running the samples of {path}"):
        if recipe.is_recipe(path):
            with tempfile.TemporaryDirectory(prefix="torchmar-check-") as store:
                return run_samples(archive.build(path, Path(store)).path)
        return run_samples(path)


def _show(path: Path, finding: Finding) -> None:
    # The place of a finding in a recipe contains the file already.
    place = finding.place if finding.place.startswith(str(path)) else f"{path}!{finding.place}".rstrip("!")
    colour = "red" if finding.severity == "error" else "yellow"
    out.print(f"[{colour}]{finding.code.name}[/] {escape(place)}: {escape(finding.cause)}")
    if finding.remedy:
        out.print(f"       [cyan]hint:[/] {escape(finding.remedy)}")


def _show_report(path: Path, report: SampleReport) -> None:
    rows = [
        (sample.name, "differs" if sample.differences else "ok", f"{sample.first_ms:.1f}", f"{sample.steady_ms:.1f}")
        for sample in report.samples
    ]
    show_table(table(("sample", "answer", "first ms", "steady ms"), rows, right=("first ms", "steady ms")))
    out.print()
    for problem in report.problems:
        out.print(f"[red]differs[/] {escape(problem)}")
    facts = (
        f"loaded in {report.load_seconds:.1f} s",
        f"batches of {report.batch_size}",
        f"peak memory {show_size(report.peak_memory)}",
        "explains" if report.explains else "offers no explanations",
        f"bad requests got {', '.join(map(str, sorted(set(report.bad_request_statuses))))}",
    )
    verdict = "[red]broken[/]" if report.problems else "[green]kept[/]"
    out.print(f"{verdict} {escape(str(path))}: {'; '.join(facts)}")


def _document(path: Path, findings: list[Finding], report: SampleReport | None) -> dict[str, object]:
    from dataclasses import asdict

    documents = [
        {"code": finding.code.name, "severity": finding.severity, "title": finding.code.title}
        | {"place": finding.place, "cause": finding.cause, "remedy": finding.remedy}
        for finding in findings
    ]
    return {"path": str(path), "findings": documents, **({"run": asdict(report)} if report else {})}


def _is_wanted(finding: Finding, select: list[str] | None, ignore: list[str] | None) -> bool:
    from torchmar.checks.finding import matches

    return (not select or matches(finding.code, select)) and not matches(finding.code, ignore or ())
