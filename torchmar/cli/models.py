"""Commands on the models of a running server, in the management API's terms."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.cli.endpoint import ServerOptions, with_server_options
from torchmar.cli.operating import complain_of_failing
from torchmar.cli.options import (
    Address,
    AsJson,
    Check,
    Ignore,
    Name,
    Synchronous,
    Version,
    WorkersTimeout,
)
from torchmar.cli.terminal import complain, err, out, show_table, table
from torchmar.errors import NotFoundError, TorchmarError

if TYPE_CHECKING:
    from torchmar.management import ManagementClient, ModelVersion

PANEL = "Models on a server"
_SETTINGS = "Workers and batches"
_POLL_SECONDS = 0.5


@with_server_options
def models(
    name: Annotated[str | None, typer.Argument(help="Only this model.", show_default=False)] = None,
    customized: Annotated[
        bool, typer.Option("--customized", help="Include the metadata that each handler returns.")
    ] = False,
    as_json: AsJson = False,
    address: Address = None,
    *,
    server: ServerOptions,
) -> None:
    """List models, their versions, workers and batching."""
    client = _client(server, address)
    rows = []
    for model in [name] if name else sorted(client.names()):
        try:
            rows += _versions(client, model, customized)
        except NotFoundError as error:
            if name:
                raise
            complain(TorchmarError(f"{model}: {error.message}"))  # unregistered since the list was read
    if as_json:
        typer.echo(
            json.dumps([{**asdict(version), "default": default} for version, default in rows], indent=2, default=str)
        )
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
    for version, _ in rows if customized else ():
        document = json.dumps(version.customized, indent=2, ensure_ascii=False)
        out.print(f"\n{version.name} {version.version}: {document}", markup=False)
    if address is None and any(version.ready < version.min_workers for version, _ in rows):
        from torchmar.connection import RUN_FOLDER

        complain_of_failing(server.run_folder or RUN_FOLDER)


@with_server_options
def register(
    archive: Annotated[
        str,
        typer.Argument(
            help="An archive in the server's model store, or a URL that it allows: https, s3, gs or az.",
            show_default=False,
        ),
    ],
    model_name: Annotated[str | None, typer.Option(help="Register under another name.", show_default=False)] = None,
    handler: Annotated[
        str | None, typer.Option(help="A handler in place of the archive's.", show_default=False)
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="The runtime in place of the archive's: python or python3.", show_default=False)
    ] = None,
    initial_workers: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Workers, unless the archive has a number.", rich_help_panel=_SETTINGS),
    ] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Requests in a batch, unless the archive has a number.",
            show_default=False,
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    max_batch_delay: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="MS",
            help="How long to wait for a batch to fill, unless the archive has a number.",
            show_default=False,
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    response_timeout: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS",
            min=1,
            help="How long one batch may take, unless the archive has a number.",
            show_default=False,
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    startup_timeout: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS",
            min=1,
            help="How long a worker may take to load, unless the archive has a number.",
            show_default=False,
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(
            metavar="sha256:HEX",
            help="The SHA-256 that the file of the archive must have, as sha256sum prints it.",
            show_default=False,
        ),
    ] = None,
    s3_sse_kms: Annotated[
        bool, typer.Option("--s3-sse-kms", help="The archive in S3 is encrypted by AWS KMS.", show_default=False)
    ] = False,
    synchronous: Synchronous = True,
    timeout: WorkersTimeout = 300.0,
    check: Check = True,
    ignore: Ignore = None,
    address: Address = None,
    *,
    server: ServerOptions,
) -> None:
    """Register an archive and wait until its workers answer.

    An archive on this machine is checked first, digests included.
    """
    client = _client(server, address)
    # The server takes file names in its model store, but users type the path of the file.
    url = Path(archive).name if Path(archive).exists() else archive
    ignored = (ignore or []) if check else ["MAR"]
    _admit(Path(archive), server.run_folder, ignored, remote=address is not None)
    polling = _client(server, address)
    with err.status(f"registering {url}") as status, _download_shown(url, polling, status.update):
        document = client.register(
            url,
            model_name=model_name,
            handler=handler,
            runtime=runtime,
            initial_workers=initial_workers,
            batch_size=batch_size,
            max_batch_delay=max_batch_delay,
            response_timeout=response_timeout,
            startup_timeout=startup_timeout,
            s3_sse_kms=s3_sse_kms,
            synchronous=synchronous,
            timeout=timeout,
            ignored_checks=ignored,
            digest=digest,
        )
    out.print(document, markup=False)


@with_server_options
def scale(
    name: Name,
    min_worker: Annotated[int, typer.Argument(metavar="WORKERS", min=0, help="Workers to run.", show_default=False)],
    version: Version = None,
    max_worker: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="The largest number of workers.", show_default=False)
    ] = None,
    synchronous: Synchronous = True,
    timeout: WorkersTimeout = 300.0,
    address: Address = None,
    *,
    server: ServerOptions,
) -> None:
    """Set the number of workers of a model and wait until they answer."""
    client = _client(server, address)
    with err.status(f"scaling {name}"):
        document = client.scale(
            name, version, min_worker=min_worker, max_worker=max_worker, synchronous=synchronous, timeout=timeout
        )
    out.print(document, markup=False)


@with_server_options
def set_default(
    name: Name,
    version: Annotated[str, typer.Argument(help="The version to make the default.", show_default=False)],
    address: Address = None,
    *,
    server: ServerOptions,
) -> None:
    """Set the version that answers requests without a version."""
    out.print(_client(server, address).set_default(name, version), markup=False)


@with_server_options
def unregister(
    name: Name,
    version: Version = None,
    address: Address = None,
    *,
    server: ServerOptions,
) -> None:
    """Remove a model, or one version of it, from the server."""
    client = _client(server, address)
    out.print(client.unregister(name, version), markup=False)


@contextlib.contextmanager
def _download_shown(url: str, client: ManagementClient, show: Callable[[str], None]) -> Iterator[None]:
    """Show the progress of the download of an archive, on a terminal only."""
    from torchmar.archive.built_archive import show_size
    from torchmar.server.models import archive_urls

    if not err.is_terminal or not archive_urls.is_remote(url):
        yield
        return
    shown_url, over = archive_urls.without_secrets(url.partition("#")[0]), threading.Event()

    def poll() -> None:
        with contextlib.suppress(TorchmarError):  # TorchServe has no such call
            while not over.wait(_POLL_SECONDS):
                for download in client.downloads():
                    if download.url == shown_url:
                        size = f" of {show_size(download.size)}" if download.size is not None else ""
                        show(escape(f"downloading {shown_url}: {show_size(download.received)}{size}"))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _versions(client: ManagementClient, name: str, customized: bool) -> list[tuple[ModelVersion, bool]]:
    """Return the versions of a model, each with a flag for the default one."""
    default = client.describe(name)[0].version
    versions = client.describe(name, "all")
    if customized:  # the description of "all" versions has no metadata of handlers
        versions = [client.describe(name, version.version, customized=True)[0] for version in versions]
    return [(version, version.version == default) for version in versions]


def _admit(archive: Path, run_folder: Path | None, ignored: list[str], *, remote: bool) -> None:
    """Check the file that the server will load: the file in its model store, or else the named file."""
    from torchmar.checks.admission import admit
    from torchmar.cli import findings
    from torchmar.deployment.context import local_model_store

    store = None if remote else local_model_store(run_folder)
    paths = [store / archive.name, archive] if store else [archive]
    if path := next((path for path in paths if path.exists()), None):
        with err.status(f"checking {path.name}"):
            findings.warn(admit(path, ignored))


def _client(server: ServerOptions, address: str | None) -> ManagementClient:
    from torchmar.management import ManagementClient

    return ManagementClient(server.endpoint("management", address))
