"""torchmar export monitoring: alert rules and a dashboard."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from torchmar.cli.exporting.files import require_folder, write


def monitoring(
    job: Annotated[str, typer.Option(help="The name of Prometheus' job that scrapes the servers.")] = "torchmar",
    latency: Annotated[
        str, typer.Option(metavar="TIME", help="An alert is raised if 1 % of a model's requests take longer.")
    ] = "1s",
    queue: Annotated[
        str, typer.Option(metavar="TIME", help="An alert is raised if 5 % of the requests wait longer for a worker.")
    ] = "500ms",
    errors: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The share of server errors above which an alert is raised.")
    ] = 0.01,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder for alerts.yaml and dashboard.json; made if missing.")
    ] = Path(),
) -> None:
    """Write Prometheus' alert rules and a dashboard for Grafana."""
    from torchmar.exporting.monitoring import Limits, alerts, dashboard
    from torchmar.tuning.target import parse_duration

    if not re.fullmatch(r"[\w.:/-]+", job):
        raise typer.BadParameter(f"{job!r} is no name of a job", param_hint="--job")
    limits = Limits(
        job=job, request_seconds=parse_duration(latency), queue_seconds=parse_duration(queue), errors=errors
    )
    require_folder(output, "alerts.yaml and dashboard.json", make=True)
    write({output / "alerts.yaml": alerts(limits), output / "dashboard.json": dashboard(limits)})
