"""The command that prints a link to the console of a server."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar.cli.options import CaFile, KeyFile, ManagementAddress, PlainHttp, RunFolder
from torchmar.cli.terminal import err
from torchmar.cli.terminal import lasting_out as out
from torchmar.errors import NotFoundError, TorchmarError

if TYPE_CHECKING:
    from torchmar.connection import Endpoint


def console(
    open_browser: Annotated[bool, typer.Option("--open", help="Open the link in this machine's browser, too.")] = False,
    address: ManagementAddress = None,
    run_folder: RunFolder = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    allow_plain_http: PlainHttp = False,
) -> None:
    """Print a link that opens the console of a server in a browser, signed in.

    The link works once, and for ten minutes. The browser needs to reach the
    management API; of a server on another machine, forward its port:
    ssh -L 8081:127.0.0.1:8081 HOST
    """
    from torchmar.cli.endpoint import endpoint

    server = endpoint("management", address, run_folder, key_file, ca_file, allow_plain_http)
    url = link(server)
    out.print(url, markup=False, soft_wrap=True)
    if open_browser:
        import webbrowser

        if not webbrowser.open(url):
            err.print("no browser can be opened here; use the link in one that reaches the server", markup=False)


def link(server: Endpoint) -> str:
    """Return the address of the console, with a code that signs a browser in if the server has tokens.

    Raises:
        TorchmarError: the server does not answer, rejects the call, or has no console.
    """
    from torchmar.management import ManagementClient

    if server.management.startswith("unix:"):
        raise TorchmarError(
            f"browsers do not reach {server.management}",
            hint="set management_address to a host and a port, such as http://127.0.0.1:8081",
        )
    address = f"{server.management.rstrip('/')}/console"
    with ManagementClient(server) as client:
        try:
            code = client.console_code()
        except NotFoundError:
            raise TorchmarError(
                f"{server.management} has no console",
                hint="the built-in server has one: torchmar serve --engine builtin",
            ) from None
    return f"{address}?code={code}" if code else address


def print_link(server: Endpoint) -> None:
    """Print the link to the console, as one of the addresses of a server that has just started."""
    with contextlib.suppress(TorchmarError):
        out.print(f"  console     {link(server)}", markup=False, soft_wrap=True)
