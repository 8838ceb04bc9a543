"""torchmar export vllm: files with which vLLM serves a language model of an archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from torchmar.cli.exporting.files import identity, require_folder, write
from torchmar.cli.terminal import err


def vllm(
    archive: Annotated[
        Path, typer.Argument(metavar="ARCHIVE", help="An archive for TorchServe's vLLM handler.", show_default=False)
    ],
    image: Annotated[
        str | None, typer.Option(help="The image of vLLM in the manifest; default: vLLM's own.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The folder for NAME.sh and NAME.yaml, made if missing; default: stdout.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the command and the Kubernetes manifest with which vLLM serves a language model.

    TorchServe's handler for vLLM does not run with a current vLLM (MAR311).
    """
    from torchmar.archive import Archive
    from torchmar.errors import TorchmarError
    from torchmar.exporting import vllm as exporting
    from torchmar.exporting import vllm_options

    with Archive(archive) as opened:
        name, version = identity(opened)
        config, files = opened.config, [member.name for member in opened.members]
        handler = opened.manifest.model.handler
    if "vllm_engine_config" not in str(config.get("handler")) and "vllm" not in handler:
        raise TorchmarError(
            f"{archive} is no archive of a language model: its handler is {handler}, and its configuration has no "
            "vllm_engine_config",
            hint="torchmar serve serves it",
        )
    model = exporting.read(name, config, files)
    content = f"{name}-{version}" if model.inside else ""
    text = exporting.command(model, content)
    if output is None:
        write({None: text})
        err.print("--output . writes it to a file, with a manifest for Kubernetes")
    else:
        require_folder(output, f"{name}.sh and {name}.yaml", make=True)
        script = (
            f"#!/bin/sh\n# Serves {name} {version} with vLLM: pip install vllm=={vllm_options.VERSION}\nexec {text}"
        )
        write(
            {
                output / f"{name}.sh": script,
                output / f"{name}.yaml": exporting.manifest(model, image or exporting.IMAGE),
            }
        )
    if content:
        err.print(f"the model is in the archive: torchmar extract {archive} {content}", markup=False)
    for sentence in model.omitted:
        err.print(f"[yellow]left out:[/] {escape(sentence)}")
    err.print(
        f"clients send requests to /v1/chat/completions and /v1/completions, no longer below /predictions/{name}/",
        markup=False,
    )
