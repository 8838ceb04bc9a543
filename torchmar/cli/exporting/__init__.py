"""The commands of ``torchmar export``, one module each: files for what runs ``torchmar serve``, or watches it."""

from __future__ import annotations

import typer

from torchmar.cli.exporting import docker, monitoring, systemd

app = typer.Typer(no_args_is_help=True, help="Write what runs torchmar serve, or what watches it.")
for _command in (systemd.systemd, docker.docker, monitoring.monitoring):
    app.command()(_command)
