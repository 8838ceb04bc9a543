"""The command that finds problems of a machine, its configuration and its server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from torchmar.cli.options import AsJson, Config, Engine, ModelStore, RunFolder
from torchmar.cli.terminal import err, out, show_table
from torchmar.engines import DEFAULT

if TYPE_CHECKING:
    from torchmar.diagnosis import Finding

_COLOURS = {"error": "red", "warning": "yellow", "ok": "green"}


def doctor(
    config: Config = None,
    model_store: ModelStore = None,
    engine: Engine = DEFAULT,
    as_json: AsJson = False,
    run_folder: RunFolder = None,
) -> None:
    """Check Java, Python, GPUs, ports, archives, logs and server; suggest corrections.

    A running server's engine has precedence over --engine. Nothing is changed, and
    no code of an archive is run. Exit code 1: there is an error; warnings do
    not count.
    """
    from dataclasses import asdict

    from torchmar import diagnosis
    from torchmar.connection import RUN_FOLDER

    findings = []
    examination = diagnosis.examine(config, model_store, run_folder or RUN_FOLDER, engine)
    while True:
        with err.status("checking"):
            finding = next(examination, None)
        if finding is None:
            break
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in ("error", "warning")}
    if not as_json:
        parts = [f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items() if count]
        out.print(f"\n{', '.join(parts) or 'nothing is wrong'}")
    raise typer.Exit(1 if counts["error"] else 0)


def _show(finding: Finding) -> None:
    """Print a finding; on a terminal its text is wrapped within its column."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=7)
    grid.add_column(width=8)
    grid.add_column(overflow="fold")
    text = escape(finding.cause) + (f"\n[cyan]hint:[/] {escape(finding.remedy)}" if finding.remedy else "")
    grid.add_row(f"[{_COLOURS[finding.severity]}]{finding.severity}[/]", finding.topic, text)
    show_table(grid)
