"""The endpoint of a server: addresses of its APIs, tokens and trusted certificates."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from torchmar import properties

Api = Literal["inference", "management"]
APIS: tuple[Api, ...] = ("inference", "management")

RUN_FOLDER = Path(".torchmar")
KEY_FILE = "key_file.json"
PLAIN_HTTP_VARIABLE = "TORCHMAR_ALLOW_PLAIN_HTTP"


def token_variable(api: Api) -> str:
    """Return the name of the environment variable with the token of ``api``."""
    return f"TORCHMAR_{api.upper()}_TOKEN"


def _tokens_of_environment() -> dict[str, str]:
    tokens = {api: os.environ.get(token_variable(api), "").strip() for api in APIS}
    return {api: token for api, token in tokens.items() if token}


def _plain_http_of_environment() -> bool:
    return os.environ.get(PLAIN_HTTP_VARIABLE, "").lower() in ("1", "true", "yes")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The addresses of a server, and the tokens and certificates to use with it.

    Attributes:
        inference: the address of the inference API, with the path that a proxy gives it:
            ``https://host/ts/inference``; or a Unix socket, ``unix:/run/inference.sock``.
        management: the address of the management API, in the same form.
        key_file: file ``key_file.json`` of the server; its tokens are renewed before they expire.
        tokens: tokens by API, if there is no key file; default: the environment's
            ``TORCHMAR_INFERENCE_TOKEN`` and ``TORCHMAR_MANAGEMENT_TOKEN``.
        verify: a PEM file of trusted certificates for https addresses; True: the certificates of the system; False: do
            not check certificates, so that any machine in between may read the token.
        allow_plain_http: whether to send tokens over plain HTTP to other machines; default: whether the environment
            has ``TORCHMAR_ALLOW_PLAIN_HTTP=1``.
        grpc_inference: address of the inference API over gRPC; ``grpcs://`` uses TLS.
        grpc_management: address of the management API over gRPC.

    Examples:
        >>> import torchmar
        >>> server = torchmar.Endpoint(inference="https://models.example.com/ts", tokens={"inference": "..."})
        >>> torchmar.InferenceClient(server).close()
    """

    inference: str = properties.DEFAULTS["inference_address"]
    management: str = properties.DEFAULTS["management_address"]
    key_file: Path | None = None
    tokens: Mapping[str, str] = field(default_factory=_tokens_of_environment, repr=False)
    verify: Path | bool = True
    allow_plain_http: bool = field(default_factory=_plain_http_of_environment)
    grpc_inference: str = f"grpc://127.0.0.1:{properties.DEFAULTS['grpc_inference_port']}"
    grpc_management: str = f"grpc://127.0.0.1:{properties.DEFAULTS['grpc_management_port']}"

    @classmethod
    def from_run_folder(cls, folder: Path = RUN_FOLDER) -> Endpoint:
        """Return the endpoint of the server with the run folder ``folder``, or of TorchServe's default addresses.

        Raises:
            PropertiesError: the configuration in the folder cannot be read, or has an invalid address.
        """
        config = folder / "config.properties"
        if not config.is_file():
            key_file = Path(KEY_FILE)  # key file of a server that was started by hand in this folder
            return cls(key_file=key_file if key_file.is_file() else None)
        values = properties.read(config)
        certificate = Path(values.get("certificate_file"))
        scheme = "grpcs" if values.flag("enable_grpc_ssl") else "grpc"
        grpc = {
            f"grpc_{api}": f"{scheme}://{values.get(f'grpc_{api}_address')}:{values.get(f'grpc_{api}_port')}"
            for api in APIS
        }
        return cls(
            inference=reachable(values.url("inference_address")),
            management=reachable(values.url("management_address")),
            # A token in the environment is for another server.
            key_file=None if values.flag("disable_token_authorization") else folder / KEY_FILE,
            tokens={},
            verify=certificate if certificate.is_file() else True,
            grpc_inference=reachable(grpc["grpc_inference"]),
            grpc_management=reachable(grpc["grpc_management"]),
        )

    @classmethod
    def coerce(cls, server: Endpoint | str | None, api: Api) -> Endpoint:
        """Return the endpoint for a client's argument: an endpoint, an address, or None for the run folder."""
        if isinstance(server, Endpoint):
            return server
        if server is None:
            return cls.from_run_folder()
        return cls(inference=server) if api == "inference" else cls(management=server)


def reachable(address: str) -> str:
    """Return an address for clients: loopback for a server that listens on all addresses."""
    parts = urlsplit(address)
    for unspecified, loopback in (("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]")):
        if parts.netloc.startswith(f"{unspecified}:"):
            return urlunsplit(parts._replace(netloc=loopback + parts.netloc[len(unspecified) :]))
    return address
