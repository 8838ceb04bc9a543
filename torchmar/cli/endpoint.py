"""The endpoint of the server that the options of a command name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from torchmar.connection import Endpoint


def endpoint(
    field: str,
    address: str | None,
    run_folder: Path | None,
    key_file: Path | None,
    ca_file: Path | None,
    allow_plain_http: bool,
) -> Endpoint:
    """Return the endpoint of a server.

    Args:
        field: the field of the endpoint that ``address`` is for: inference, management, grpc_inference or
            grpc_management.
        address: default: the run folder's. The token and the certificate of the run folder are not
            used for another address.
        run_folder: the run folder of ``torchmar serve``; default: ``.torchmar``.
        key_file: takes the place of the run folder's and the environment's tokens.
        ca_file: takes the place of the usual certificates.
        allow_plain_http: allow tokens over plain HTTP, even if the environment does not.
    """
    from torchmar.connection import RUN_FOLDER, Endpoint

    of_folder = Endpoint.from_run_folder(run_folder or RUN_FOLDER)
    if address and not same_server(address, getattr(of_folder, field)):
        of_folder = Endpoint()
    changes: dict[str, Any] = {field: address} if address else {}
    return replace(
        of_folder,
        **changes,
        key_file=key_file or of_folder.key_file,
        verify=ca_file or of_folder.verify,
        allow_plain_http=allow_plain_http or of_folder.allow_plain_http,
    )


def same_server(first: str, second: str) -> bool:
    """Return whether two addresses are of one server; all addresses of this machine count as one host."""
    from torchmar.connection.local import is_local

    try:
        left, right = urlsplit(first), urlsplit(second)
        if "unix" in (left.scheme, right.scheme):
            return left == right
        same_host = left.hostname == right.hostname or (
            is_local(left.hostname or "") and is_local(right.hostname or "")
        )
        return same_host and (left.scheme, left.port) == (right.scheme, right.port)
    except ValueError:
        return False
