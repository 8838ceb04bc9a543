"""The command that looks for what is wrong with a machine, its configuration and its server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.cli.options import AsJson, RunFolder, ServedFrom
from torchmar.cli.terminal import err, out, show_table
from torchmar.engines import DEFAULT, EngineName

if TYPE_CHECKING:
    from torchmar.diagnosis import Finding

_COLOURS = {"error": "red", "warning": "yellow", "ok": "green"}


def doctor(
    config: ServedFrom = None,
    model_store: Annotated[
        Path | None,
        typer.Option(help="The folder with the archives; default: the configuration's, or model_store."),
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="Which server is to run, where none does: TorchServe needs Java.")
    ] = DEFAULT,
    as_json: AsJson = False,
    run_folder: RunFolder = None,
) -> None:
    """Check Java, Python, GPUs, ports, archives, log and server, and say how to correct what is wrong.

    Nothing is changed, and nothing of an archive is run. Exits with 1 if there
    is an error; warnings alone do not fail.
    """
    from dataclasses import asdict

    from torchmar import diagnosis
    from torchmar.connection import RUN_FOLDER

    findings = []
    looking = diagnosis.examine(config, model_store, run_folder or RUN_FOLDER, engine)
    while True:
        with err.status("looking"):
            finding = next(looking, None)
        if finding is None:
            break
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in ("error", "warning")}
    if not as_json:
        message = [f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items() if count]
        out.print(f"\n{', '.join(message) or 'nothing is wrong'}")
    raise typer.Exit(1 if counts["error"] else 0)


def _show(finding: Finding) -> None:
    """Print a finding; on a terminal its text keeps to its column."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=7)
    grid.add_column(width=8)
    grid.add_column(overflow="fold")
    text = escape(finding.cause) + (f"\n[cyan]hint:[/] {escape(finding.remedy)}" if finding.remedy else "")
    grid.add_row(f"[{_COLOURS[finding.severity]}]{finding.severity}[/]", finding.topic, text)
    show_table(grid)
