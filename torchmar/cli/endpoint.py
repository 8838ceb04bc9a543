"""The options of commands that connect to a running server, and the endpoint that they name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, get_type_hints
from urllib.parse import urlsplit

from torchmar.cli.options import CaFile, KeyFile, PlainHttp, RunFolder

if TYPE_CHECKING:
    from torchmar.connection import Endpoint


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """The options of every command that connects to a running server, in addition to the address.

    Attributes:
        run_folder: the run folder of ``torchmar serve``; None: ``.torchmar``.
        key_file: file with tokens, in place of those of the run folder and the environment.
        ca_file: file with certificates to trust, in place of the usual ones.
        allow_plain_http: whether to send tokens over plain HTTP, even if the environment does not permit it.
    """

    run_folder: RunFolder = None
    key_file: KeyFile = None
    ca_file: CaFile = None
    allow_plain_http: PlainHttp = False

    def endpoint(self, field: str, address: str | None) -> Endpoint:
        """Return the endpoint of the server.

        Args:
            field: field of the endpoint for ``address``: inference, management, grpc_inference or
                grpc_management.
            address: address of the API; None: the run folder's. The run folder's token and certificate are not used for
                another address.
        """
        from torchmar.connection import RUN_FOLDER, Endpoint

        of_folder = Endpoint.from_run_folder(self.run_folder or RUN_FOLDER)
        if address and not same_server(address, getattr(of_folder, field)):
            of_folder = Endpoint()
        changes: dict[str, Any] = {field: address} if address else {}
        return replace(
            of_folder,
            **changes,
            key_file=self.key_file or of_folder.key_file,
            verify=self.ca_file or of_folder.verify,
            allow_plain_http=self.allow_plain_http or of_folder.allow_plain_http,
        )


def with_server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter ``server`` of a command, a `ServerOptions`, by one option for each of its fields."""
    hints = get_type_hints(ServerOptions, include_extras=True)
    signature = inspect.signature(command, eval_str=True)
    parameters = [parameter for name, parameter in signature.parameters.items() if name != "server"]
    parameters += [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(ServerOptions)
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        server = ServerOptions(**{field.name: values.pop(field.name) for field in fields(ServerOptions)})
        command(**values, server=server)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # typer reads it
    return run


def same_server(first: str, second: str) -> bool:
    """Return whether two addresses belong to one server; all addresses of this machine count as one host."""
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
