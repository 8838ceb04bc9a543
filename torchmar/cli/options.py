"""Options that several commands take, and the server that they name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torchmar.connection import Server

WHERE = "Which server"
Name = Annotated[str, typer.Argument(help="The model's name.", show_default=False)]
Version = Annotated[str | None, typer.Option(help="The version; default: the default one.", show_default=False)]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        help="The folder that torchmar serve runs with; default: .torchmar.",
        envvar="TORCHMAR_RUN_FOLDER",
        show_default=False,
        show_envvar=False,
        rich_help_panel=WHERE,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The API's address; default: what the run folder says.",
        show_default=False,
        rich_help_panel=WHERE,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        help="The server's key_file.json; default: the run folder's.", show_default=False, rich_help_panel=WHERE
    ),
]


def server(
    run_folder: Path | None, key_file: Path | None, *, inference: str | None = None, management: str | None = None
) -> Server:
    """Return the server that the options name."""
    from torchmar.connection import RUN_FOLDER, Server

    found = Server.started_in(run_folder or RUN_FOLDER)
    return replace(
        found,
        inference=inference or found.inference,
        management=management or found.management,
        key_file=key_file or found.key_file,
    )
