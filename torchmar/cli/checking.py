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
        typer.Argument(metavar="ARCHIVE|RECIPE|FOLDER", help="What to check.", show_default=False),
    ],
    run: Annotated[bool, typer.Option("--run", help="Ask the samples too, in a worker process.")] = False,
    select: Select = None,
    ignore: Ignore = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    gpus: Annotated[int | None, typer.Option(min=0, help="How many GPUs the server has.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Find what would fail on the server, before any server sees it.

    Nothing of the archive is run, unless --run asks for it.
    Exits with 1 if there is an error; warnings fail with --strict only.
    Every code has a section in docs/checks.md.
    """
    from torchmar import checks

    failed = False
    documents = []
    for path in paths:
        findings = [one for one in checks.check(path, gpus) if _wanted(one, select, ignore)]
        errors = [one for one in findings if one.severity == "error"]
        failed |= bool(findings if strict else errors)
        proof = _prove(path) if run and not errors else None
        failed |= bool(proof and proof.problems)
        if as_json:
            documents.append(_document(path, findings, proof))
            continue
        for finding in findings:
            _show(path, finding)
        if proof:
            _report(path, proof)
        elif run:
            err.print(f"{path}: not run, because of the errors above", markup=False)
        if not findings and not proof:
            out.print(f"[green]ok[/] {escape(str(path))}")
    if as_json:
        typer.echo(json.dumps(documents, indent=2, ensure_ascii=False))
    raise typer.Exit(1 if failed else 0)


def _prove(path: Path) -> SampleReport:
    import tempfile

    from torchmar import archive, recipe
    from torchmar.sample_check import run_samples

    with err.status(f"asking the samples of {path}"):
        if recipe.is_recipe(path):
            with tempfile.TemporaryDirectory(prefix="torchmar-check-") as store:
                return run_samples(archive.build(path, Path(store)).path)
        return run_samples(path)


def _show(path: Path, finding: Finding) -> None:
    # A place in a recipe names its file itself.
    place = finding.place if finding.place.startswith(str(path)) else f"{path}!{finding.place}".rstrip("!")
    colour = "red" if finding.severity == "error" else "yellow"
    out.print(f"[{colour}]{finding.code.name}[/] {escape(place)}: {escape(finding.cause)}")
    if finding.remedy:
        out.print(f"       [cyan]hint:[/] {escape(finding.remedy)}")


def _report(path: Path, proof: SampleReport) -> None:
    rows = [
        (one.name, "differs" if one.differences else "ok", f"{one.first:.1f}", f"{one.steady:.1f}")
        for one in proof.samples
    ]
    show_table(table(("sample", "answer", "first ms", "steady ms"), rows, right=("first ms", "steady ms")))
    out.print()
    for problem in proof.problems:
        out.print(f"[red]differs[/] {escape(problem)}")
    facts = (
        f"loaded in {proof.load:.1f} s",
        f"batches of {proof.batch_size}",
        f"peak memory {show_size(proof.peak)}",
        "explains" if proof.explains else "offers no explanations",
        f"bad requests got {', '.join(map(str, sorted(set(proof.refused))))}",
    )
    verdict = "[red]broken[/]" if proof.problems else "[green]kept[/]"
    out.print(f"{verdict} {escape(str(path))}: {'; '.join(facts)}")


def _document(path: Path, findings: list[Finding], proof: SampleReport | None) -> dict[str, object]:
    from dataclasses import asdict

    message = [
        {"code": one.code.name, "severity": one.severity, "title": one.code.title}
        | {"place": one.place, "cause": one.cause, "remedy": one.remedy}
        for one in findings
    ]
    return {"path": str(path), "findings": message, **({"run": asdict(proof)} if proof else {})}


def _wanted(finding: Finding, select: list[str] | None, ignore: list[str] | None) -> bool:
    from torchmar.checks.finding import matches

    return (not select or matches(finding.code, select)) and not matches(finding.code, ignore or ())
