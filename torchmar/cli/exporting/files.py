"""What the commands of ``torchmar export`` share: the configuration, the model store, and the files they write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from torchmar import atomic
from torchmar.cli.terminal import err
from torchmar.errors import TorchmarError
from torchmar.properties import Properties

Config = Annotated[Path, typer.Option(help="The server's configuration.")]


def store(config: Properties, given: Path | None) -> Path:
    """Return the model store: the given one, or that of the configuration."""
    return given or Path(config.get("model_store") or "model_store")


def write(texts: Mapping[Path | None, str]) -> None:
    """Write each text to its file, atomically, and print its name; None is stdout.

    Raises:
        TorchmarError: a file cannot be written.
    """
    for file, text in texts.items():
        if file is None:
            typer.echo(text, nl=False)
            continue
        atomic.write_text(text, file)
        err.print(f"wrote {file}", markup=False)


def require_folder(folder: Path, content: str) -> None:
    """Raise TorchmarError if ``folder`` is not a folder; ``content`` names what would be written to it."""
    if not folder.is_dir():
        raise TorchmarError(f"{folder} is not a folder", hint=f"{content} are written to it")
