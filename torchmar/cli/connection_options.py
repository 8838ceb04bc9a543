"""Options about how a server is reached, and the server that they name together with the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from torchmar.cli.options import WHERE

if TYPE_CHECKING:
    from torchmar.connection import Endpoint

CaFile = Annotated[
    Path | None,
    typer.Option(
        help="Certificates (PEM) to trust for https: those that sign the server's, or its own.",
        show_default=False,
        rich_help_panel=WHERE,
    ),
]
PlainHttp = Annotated[
    bool,
    typer.Option(
        "--allow-plain-http",
        help="Send the token to another machine without TLS, too.",
        show_default=False,
        rich_help_panel=WHERE,
    ),
]


def server(
    field: str,
    address: str | None,
    run_folder: Path | None,
    key_file: Path | None,
    ca_file: Path | None,
    allow_plain_http: bool,
) -> Endpoint:
    """Return the server that the options name.

    Args:
        field: what ``address`` is of: inference, management, grpc_inference or grpc_management.
        address: if it is not the run folder's, neither its tokens nor its certificate go there.
        run_folder: of ``torchmar serve``.
        key_file: goes before the run folder's and the environment's tokens.
        ca_file: in place of the usual certificates.
        allow_plain_http: in any case, besides where the environment says so.
    """
    from torchmar.connection import RUN_FOLDER, Endpoint

    found = Endpoint.from_run_folder(run_folder or RUN_FOLDER)
    if address and not _same(address, getattr(found, field)):
        found = Endpoint()
    named: dict[str, Any] = {field: address} if address else {}
    return replace(
        found,
        **named,
        key_file=key_file or found.key_file,
        verify=ca_file or found.verify,
        allow_plain_http=allow_plain_http or found.allow_plain_http,
    )


def _same(first: str, second: str) -> bool:
    """Tell whether two addresses are of one server; a machine has several for itself."""
    from torchmar.connection.local import is_local

    try:
        one, other = urlsplit(first), urlsplit(second)
        if "unix" in (one.scheme, other.scheme):
            return one == other
        same_host = one.hostname == other.hostname or (is_local(one.hostname or "") and is_local(other.hostname or ""))
        return same_host and (one.scheme, one.port) == (other.scheme, other.port)
    except ValueError:
        return False
