"""The command that opens the console of a server."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from torchmar.cli.endpoint import ServerOptions, same_server, with_server_options
from torchmar.cli.options import (
    WHERE,
    InferenceAddress,
    ManagementAddress,
    ServerModelStore,
)
from torchmar.cli.terminal import err
from torchmar.cli.terminal import lasting_out as out
from torchmar.errors import EngineError, NotFoundError, TorchmarError

if TYPE_CHECKING:
    from torchmar.connection import Endpoint
    from torchmar.remote_console.reader import Target

_PORT = 8089


@with_server_options
def console(
    open_browser: Annotated[bool, typer.Option("--open", help="Open the link in this machine's browser, too.")] = False,
    serve_here: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="Serve the page here, even if the server has one: for a server that the browser does not reach.",
        ),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=1,
            max=65535,
            help=f"Where a page that is served here listens; default: {_PORT}, or a free one.",
            show_default=False,
        ),
    ] = None,
    address: ManagementAddress = None,
    inference: InferenceAddress = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The metrics API's address; default: the run folder's, or one port above the management API's.",
            show_default=False,
            rich_help_panel=WHERE,
        ),
    ] = None,
    model_store: ServerModelStore = None,
    *,
    server: ServerOptions,
) -> None:
    """Print a link that opens the console of a server in a browser, signed in.

    The link works once, and for ten minutes. The built-in server has a console:
    the browser needs to reach its management API; of a server on another machine,
    forward its port: ssh -L 8081:127.0.0.1:8081 HOST

    For TorchServe the page is served here, on 127.0.0.1, until Ctrl-C. Its token
    is sent to the server alone, never to the browser.
    """
    endpoint = server.endpoint("management", address)
    url = ""
    with contextlib.suppress(NotFoundError):
        url = link(endpoint)
    if url and not serve_here and not endpoint.management.startswith("unix:"):
        _show(url, open_browser)
        return
    target = _target(endpoint, inference, metrics, model_store, server.run_folder)
    _serve(target, port, open_browser, has_console=bool(url))


def _show(url: str, open_browser: bool) -> None:
    out.print(url, markup=False, soft_wrap=True)
    if open_browser:
        import webbrowser

        if not webbrowser.open(url):
            err.print("no browser can be opened here; use the link in one that reaches the server", markup=False)


def link(server: Endpoint) -> str:
    """Return the address of the console, with a code that signs a browser in if the server requires tokens.

    Raises:
        NotFoundError: the server has no console.
        TorchmarError: the server does not answer, or rejects the call.
    """
    from torchmar.management import ManagementClient

    with ManagementClient(server) as client:
        code = client.console_code()
    address = f"{server.management.rstrip('/')}/console"
    return f"{address}?code={code}" if code else address


def print_link(server: Endpoint) -> None:
    """Print the link to the console as one of the addresses of a started server."""
    if not server.management.startswith("unix:"):
        with contextlib.suppress(TorchmarError):
            out.print(f"  console     {link(server)}", markup=False, soft_wrap=True)


def _target(
    server: Endpoint, inference: str | None, metrics: str | None, model_store: Path | None, run_folder: Path | None
) -> Target:
    """Return the server and its properties on this machine: its run folder, metrics and model store."""
    from dataclasses import replace

    from torchmar import properties
    from torchmar.connection import RUN_FOLDER, Endpoint
    from torchmar.engines.server_records import ServerRecord
    from torchmar.remote_console.reader import Target, beside

    folder = (run_folder or RUN_FOLDER).resolve()
    of_folder = Endpoint.from_run_folder(folder)
    if not same_server(server.management, of_folder.management):
        # The other APIs of the run folder's server, or of this machine, belong to another server.
        server = replace(server, inference=inference or beside(server.management, -1))
        if not server.inference:
            raise TorchmarError("the address of the inference API is not known", hint="--inference names it")
        host = f"grpc://{urlsplit(server.inference).hostname}"
        server = replace(
            server,
            grpc_inference=f"{host}:{properties.DEFAULTS['grpc_inference_port']}",
            grpc_management=f"{host}:{properties.DEFAULTS['grpc_management_port']}",
        )
        return Target(endpoint=server, metrics=metrics or beside(server.management, 1), model_store=model_store)
    server = replace(server, inference=inference or server.inference)
    if not ServerRecord.find(folder):
        return Target(endpoint=server, metrics=metrics or beside(server.management, 1), model_store=model_store)
    values = properties.read(folder / "config.properties")
    store = model_store or Path(values.get("model_store"))
    return Target(
        endpoint=server,
        metrics=metrics or values.url("metrics_address"),
        folder=folder,
        model_store=store if store.is_dir() else None,
    )


def _serve(target: Target, port: int | None, open_browser: bool, *, has_console: bool) -> None:
    """Serve the page here until Ctrl-C."""
    for module in ("httptools", "python_multipart"):
        if importlib.util.find_spec(module) is None:
            raise EngineError(f"to serve the console here needs {module}", hint="pip install 'torchmar[server]'")
    from torchmar.remote_console import app

    shown = False

    def on_link(url: str) -> None:
        nonlocal shown
        _show(url, open_browser and not shown)
        if not shown:
            note = "; Enter prints another link" if sys.stdin and sys.stdin.isatty() else ""
            err.print(f"served here until Ctrl-C{note}", markup=False)
        shown = True

    app.serve(target, [port] if port else [_PORT, 0], on_link, has_console=has_console)
