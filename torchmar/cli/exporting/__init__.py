"""The commands of ``torchmar export``, one module each: files for programs that run or watch ``torchmar serve``."""

from __future__ import annotations

import typer

from torchmar.cli.exporting import (
    docker,
    kserve,
    kubernetes,
    monitoring,
    ray,
    ray_cluster,
    sagemaker,
    systemd,
    vertex,
    vllm,
)

app = typer.Typer(no_args_is_help=True, help="Write files for programs that run or watch torchmar serve.")
for _command in (
    systemd.systemd,
    docker.docker,
    kubernetes.kubernetes,
    kserve.kserve,
    vertex.vertex,
    sagemaker.sagemaker,
    vllm.vllm,
    ray.ray,
    ray_cluster.ray_cluster,
    monitoring.monitoring,
):
    app.command()(_command)
