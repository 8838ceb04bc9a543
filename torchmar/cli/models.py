"""Commands on the models of a running server: the management API in its own words."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar.cli.options import Address, KeyFile, Name, RunFolder, Version
from torchmar.cli.terminal import err, out, show_table, table

if TYPE_CHECKING:
    from torchmar.management import ManagementClient

PANEL = "Models on a server"


def models(
    name: Annotated[str | None, typer.Argument(help="Only this model.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
    run_folder: RunFolder = None,
    address: Address = None,
    key_file: KeyFile = None,
) -> None:
    """List models, their versions, workers and batching."""
    client = _client(run_folder, address, key_file)
    rows = []
    for found in [name] if name else sorted(client.names()):
        default = client.describe(found)[0].version
        rows += [(version, version.version == default) for version in client.describe(found, "all")]
    if as_json:
        typer.echo(json.dumps([{**asdict(version), "default": default} for version, default in rows], indent=2))
        return
    if not rows:
        err.print("no model is registered; torchmar register ARCHIVE adds one")
        return
    headings = ("model", "version", "default", "workers", "batch", "delay", "archive")
    cells = [
        (
            version.name,
            version.version,
            "yes" if default else "",
            f"{version.ready}/{version.min_workers}",
            str(version.batch_size),
            f"{version.max_batch_delay} ms",
            version.url,
        )
        for version, default in rows
    ]
    show_table(table(headings, cells, right=("workers", "batch", "delay")))


def register(
    archive: Annotated[
        str, typer.Argument(help="An archive of the server's model store, or a URL it allows.", show_default=False)
    ],
    model_name: Annotated[str | None, typer.Option(help="Register under another name.", show_default=False)] = None,
    initial_workers: Annotated[int, typer.Option(min=0, help="Workers, unless the archive says.")] = 1,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Unless the archive says.", show_default=False)] = None,
    max_batch_delay: Annotated[
        int | None, typer.Option(min=0, help="Milliseconds, unless the archive says.", show_default=False)
    ] = None,
    response_timeout: Annotated[
        int | None, typer.Option(min=1, help="Seconds, unless the archive says.", show_default=False)
    ] = None,
    run_folder: RunFolder = None,
    address: Address = None,
    key_file: KeyFile = None,
) -> None:
    """Register an archive and wait until its workers answer."""
    client = _client(run_folder, address, key_file)
    # The server knows its model store by file name; people type the path.
    url = Path(archive).name if Path(archive).exists() else archive
    with err.status(f"registering {url}"):
        said = client.register(
            url,
            model_name=model_name,
            initial_workers=initial_workers,
            batch_size=batch_size,
            max_batch_delay=max_batch_delay,
            response_timeout=response_timeout,
        )
    out.print(said, markup=False)


def scale(
    name: Name,
    min_worker: Annotated[int, typer.Argument(metavar="WORKERS", min=0, help="Workers to run.", show_default=False)],
    version: Version = None,
    max_worker: Annotated[int | None, typer.Option(min=0, help="Workers at the most.", show_default=False)] = None,
    run_folder: RunFolder = None,
    address: Address = None,
    key_file: KeyFile = None,
) -> None:
    """Set the number of workers of a model and wait until they answer."""
    client = _client(run_folder, address, key_file)
    with err.status(f"scaling {name}"):
        said = client.scale(name, version, min_worker=min_worker, max_worker=max_worker)
    out.print(said, markup=False)


def set_default(
    name: Name,
    version: Annotated[str, typer.Argument(help="The version to make the default.", show_default=False)],
    run_folder: RunFolder = None,
    address: Address = None,
    key_file: KeyFile = None,
) -> None:
    """Choose the version that answers requests without a version."""
    out.print(_client(run_folder, address, key_file).set_default(name, version), markup=False)


def unregister(
    name: Name,
    version: Version = None,
    run_folder: RunFolder = None,
    address: Address = None,
    key_file: KeyFile = None,
) -> None:
    """Remove a model, or one version of it, from the server."""
    out.print(_client(run_folder, address, key_file).unregister(name, version), markup=False)


def _client(run_folder: Path | None, address: str | None, key_file: Path | None) -> ManagementClient:
    from torchmar.cli.options import server
    from torchmar.management import ManagementClient

    return ManagementClient(server(run_folder, key_file, management=address))
