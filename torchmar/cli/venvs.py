"""The commands for environments of archives: ``torchmar lock``, and ``torchmar venv`` for those on this machine."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from torchmar.archive.built_archive import show_size
from torchmar.cli.options import AsJson
from torchmar.cli.terminal import err, out, show_table, table
from torchmar.errors import ArchiveError

app = typer.Typer(
    no_args_is_help=True, help="Build, list and remove environments of archives (runtime: in archive.yaml)."
)

_DAY = 24 * 3600.0
_STATUS_WIDTH = 60  # characters of a line of uv's output

Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        help="The folder of environments; default: ~/.cache/torchmar/venvs. For a server with torchmar_venv_folder, "
        "that folder.",
        envvar="TORCHMAR_VENV_FOLDER",
        show_default=False,
        show_envvar=False,
    ),
]


def lock(
    recipe: Annotated[Path, typer.Argument(help="archive.yaml, or its folder.", show_default=False)],
    requirements: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="The requirements file to lock; default: requirements.txt beside the recipe.",
            show_default=False,
        ),
    ] = None,
    wheelhouse: Annotated[
        bool, typer.Option("--wheelhouse", help="Download the wheels, too, for servers without a network.")
    ] = False,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Lock the newest versions, not those of the current lock file.")
    ] = False,
) -> None:
    """Write the lock file of a recipe's runtime: every package with version and hashes.

    Locks requires: of the runtime and the requirements file, with
    the packages of workers: torch, TorchServe's loader and their requirements.

    torchmar lock archives/digits --wheelhouse
    """
    from torchmar.worker.venvs import locking

    with err.status("resolving the packages") as status:
        locked = locking.lock(
            recipe,
            requirements=requirements,
            wheelhouse=wheelhouse,
            upgrade=upgrade,
            log=lambda line: status.update(escape(line[:_STATUS_WIDTH])),
        )
    wheels = f", wheels in {locked.wheels} ({show_size(locked.size)})" if locked.wheels else ""
    count = f"{locked.packages} package{'' if locked.packages == 1 else 's'}"
    out.print(f"{locked.path}  {count}{wheels}", markup=False)


@app.command()
def build(
    archive: Annotated[Path, typer.Argument(help="The .mar file or folder.", show_default=False)],
    folder: Folder = None,
) -> None:
    """Build the environment of an archive before a server needs it.

    A server uses it even if it must not install anything itself.
    """
    from torchmar.archive import Archive
    from torchmar.worker.venvs import building, specification

    with tempfile.TemporaryDirectory(prefix="torchmar-venv-") as scratch, Archive(archive) as opened:
        runtime = opened.runtime
        if runtime is None:
            raise ArchiveError(f"{archive} has no environment of its own", hint="runtime: of the recipe asks for one")
        specification.extract(opened, runtime, Path(scratch))
        spec = specification.read(runtime, Path(scratch))
        with err.status("building the environment") as status:
            venv = building.build(spec, _place(folder), lambda line: status.update(escape(line[:_STATUS_WIDTH])))
        venv.close()
    out.print(f"{venv.folder}  {spec.show()}", markup=False)


@app.command("list")
def list_(folder: Folder = None, as_json: AsJson = False) -> None:
    """List the environments on this machine."""
    from torchmar.worker.venvs import folder as folders

    place = _place(folder)
    entries = folders.entries(place)
    if as_json:
        documents = [
            {"folder": str(entry.folder), "python": entry.python, "packages": entry.packages, "bytes": entry.size}
            | {"used": entry.used, "in_use": entry.in_use}
            for entry in entries
        ]
        typer.echo(json.dumps(documents, indent=2))
        return
    if not entries:
        out.print(f"{place} has no environment", markup=False)
        return
    now = time.time()
    rows = [
        (
            entry.folder.name,
            entry.python or "not complete",
            str(len(entry.packages)),
            show_size(entry.size),
            "in use" if entry.in_use else _ago(now - entry.used),
        )
        for entry in entries
    ]
    out.print(str(place), style="bold", markup=False)
    show_table(table(("environment", "python", "packages", "size", "last used"), rows, right=("packages", "size")))


@app.command()
def clean(
    folder: Folder = None,
    unused_days: Annotated[
        float,
        typer.Option("--unused-days", metavar="DAYS", min=0, help="Keep environments that were used in these days."),
    ] = 0,
) -> None:
    """Remove the environments that no server or command uses now.

    Servers and commands build them again when they need them.
    """
    from torchmar.worker.venvs import folder as folders

    removed = folders.clean(_place(folder), unused_days * _DAY)
    total = show_size(sum(entry.size for entry in removed))
    out.print(f"removed {len(removed)} environment{'' if len(removed) == 1 else 's'}, {total}", markup=False)


def _place(folder: Path | None) -> Path:
    from torchmar.worker.venvs import folder as folders

    return folder.absolute() if folder else folders.root()


def _ago(seconds: float) -> str:
    for unit, length in (("day", _DAY), ("hour", 3600.0), ("minute", 60.0)):
        if (count := int(seconds // length)) >= 1:
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"
