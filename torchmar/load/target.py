"""The measured server and model: its address and protocol, and requests as bytes for the wire."""

from __future__ import annotations

import base64
import json
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import torchmar
from torchmar.connection import Connection, Endpoint
from torchmar.connection.endpoint import PLAIN_HTTP_VARIABLE
from torchmar.connection.local import is_local
from torchmar.connection.tokens import Tokens
from torchmar.errors import InsecureError, TorchmarError
from torchmar.exchange import Request, Response
from torchmar.load.calls import Connection as LoadConnection
from torchmar.load.calls import Owner
from torchmar.load.event_loop import EventLoop
from torchmar.load.http1 import Http1Connection
from torchmar.load.kinds import Protocol
from torchmar.load.stream import Peer
from torchmar.load.workload import Case

if TYPE_CHECKING:
    from torchmar.cluster.processes import ClusterGroup
    from torchmar.load import grpc_calls

_JSON = "application/json"
GRPC: tuple[Protocol, ...] = ("grpc", "grpc-v2")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The measured server and model.

    Attributes:
        endpoint: the server.
        model: name of the model.
        version: version of the model; default: its default version.
        protocol: protocol of the requests.
        path: path of HTTP requests, which replaces that of the protocol: a route of the server, or the path of a server
            with another API.
        pid: process id of the server, if it is local; None: it is searched by the port.
        metrics: address of the metrics API; None: the parts of the time in the server are not measured.
        engine: ``builtin``, ``torchserve``, ``ray``, or empty if unknown.
        cluster: cluster of its replicas; None: it has no cluster, or only one of its own processes.
        archive_digest: SHA-256 of the archive, or empty.
    """

    endpoint: Endpoint
    model: str
    version: str | None = None
    protocol: Protocol = "torchserve"
    path: str | None = None
    pid: int | None = None
    metrics: str | None = None
    engine: str = ""
    cluster: ClusterGroup | None = None
    archive_digest: str = ""

    @property
    def url(self) -> str:
        """The address of the API."""
        return self.endpoint.grpc_inference if self.protocol in GRPC else self.endpoint.inference

    @property
    def local(self) -> bool:
        """Whether the server runs on this machine."""
        parts = urlsplit(self.url)
        return parts.scheme == "unix" or is_local(parts.hostname or "")

    @property
    def port(self) -> int | None:
        """The port of the API; None for a Unix socket."""
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return None
        return parts.port or {"https": 443}.get(parts.scheme, 80)


class Wire:
    """The requests of a measurement as bytes, and connections that send them.

    Args:
        target: the server and model.
        cases: the requests.

    Raises:
        TorchmarError: a request cannot be sent with the protocol, or the address is invalid.
        InsecureError: the token would travel in plain text.
    """

    def __init__(self, target: Target, cases: Sequence[Case]) -> None:
        self._peer = peer(target)
        token = authorization(target)
        self._grpc: grpc_calls.Calls | None = None
        if target.protocol in GRPC:
            from torchmar.load import grpc_calls

            self._grpc = grpc_calls.Calls(target, cases, token)
            return
        parts = urlsplit(target.url)
        prefix = "" if parts.scheme == "unix" else parts.path.rstrip("/")
        host = "localhost" if parts.scheme == "unix" else parts.netloc
        self._requests = []
        for case in cases:
            path, request = http_request(target, case)
            self._requests.append(_http_bytes(host, prefix + path, request, token))

    def connect(self, loop: EventLoop, owner: Owner, *, multiplex: bool) -> LoadConnection:
        """Open a connection.

        Args:
            loop: event loop of the connection.
            owner: receives its events.
            multiplex: whether a connection over gRPC carries several calls at a time.
        """
        if self._grpc is not None:
            return self._grpc.connect(loop, self._peer, owner, multiplex=multiplex)
        return Http1Connection(loop, self._peer, self._requests, owner)


def http_request(target: Target, case: Case) -> tuple[str, Request]:
    """Return the path and the request of a case for a protocol over HTTP.

    Raises:
        TorchmarError: the protocol cannot carry the request.
    """
    name, version = quote(target.model, safe=""), quote(target.version or "", safe="")
    request = case.request
    if target.path is not None:
        return target.path, request
    if target.protocol == "kserve-v1":
        verb = "explain" if request.explain else "predict"
        return f"/v1/models/{name}:{verb}", replace(request, body=_instances(request), content_type=_JSON)
    if target.protocol == "kserve-v2":
        tensors(case)
        verb = "explain" if request.explain else "infer"
        of_version = f"/versions/{version}" if version else ""
        return f"/v2/models/{name}{of_version}/{verb}", replace(request, content_type=_JSON)
    verb = "explanations" if request.explain else "predictions"
    return f"/{verb}/{name}" + (f"/{version}" if version else ""), request


def tensors(case: Case) -> Mapping[str, Any]:
    """Return the document of a request for the Open Inference Protocol (KServe v2).

    Raises:
        TorchmarError: the body is not such a document.
    """
    try:
        document = json.loads(case.request.body)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise TorchmarError(
            f"{case.name} is no request of the Open Inference Protocol: it has no list of inputs",
            hint='such a file is JSON: {"inputs": [{"name": ..., "shape": ..., "datatype": ..., "data": ...}]}',
        )
    return document


def _instances(request: Request) -> bytes:
    """Return a body for KServe's v1 protocol: JSON with instances unchanged, anything else as one instance."""
    value: object
    if request.content_type == _JSON:
        try:
            value = json.loads(request.body)
        except ValueError:
            return request.body  # an invalid request is sent unchanged
        if isinstance(value, dict) and "instances" in value:
            return request.body
    elif request.content_type.startswith("text/"):
        value = request.body.decode("utf-8", "replace")
    else:
        value = {"b64": base64.b64encode(request.body).decode()}
    return json.dumps({"instances": [value]}).encode()


def send_alone(target: Target, case: Case, connection: Connection) -> Response:
    """Send one request over HTTP and return the response.

    Raises:
        TorchmarError: for the conditions of `torchmar.connection.Connection.request`.
    """
    path, request = http_request(target, case)
    headers = {**request.headers, "Content-Type": request.content_type, "Accept": request.accept}
    response = connection.request("POST", path, body=request.body, headers=headers)
    return Response(response.status_code, response.content)


def authorization(target: Target) -> str | None:
    """Return the token of the inference API.

    Raises:
        InsecureError: it would travel in plain text.
    """
    token = Tokens(target.endpoint).current("inference")
    scheme = urlsplit(target.url).scheme
    if token and not (target.local or scheme in ("https", "grpcs") or target.endpoint.allow_plain_http):
        raise InsecureError(
            f"the token would be sent to {target.url} in plain text",
            hint=f"use TLS or an SSH tunnel; --allow-plain-http or {PLAIN_HTTP_VARIABLE}=1 sends it nevertheless",
        )
    return token


def peer(target: Target) -> Peer:
    """Return the other end of the target's connections.

    Raises:
        TorchmarError: the address or the file of certificates is invalid.
        ConnectError: the host name has no address.
    """
    parts = urlsplit(target.url)
    if parts.scheme == "unix":
        return Peer(socket.AF_UNIX, target.url.partition(":")[2])
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname or target.port is None:
        raise TorchmarError(f"{target.url!r} is not an address", hint="write it like http://127.0.0.1:8080")
    tls = _tls(target.endpoint.verify, target.protocol) if parts.scheme in ("https", "grpcs") else None
    return Peer.resolve(parts.hostname, target.port, tls)


def _tls(verify: Path | bool, protocol: Protocol) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(verify) if isinstance(verify, Path) else None)
    except OSError as error:
        raise TorchmarError(f"{verify} cannot be read as certificates: {error.strerror or error}") from None
    if isinstance(verify, Path):  # it suffices to trust the server's own certificate
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    elif verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"] if protocol in GRPC else ["http/1.1"])
    return context


def _http_bytes(host: str, path: str, request: Request, token: str | None) -> bytes:
    headers = {
        "Host": host,
        "User-Agent": f"torchmar/{torchmar.__version__}",
        "Accept": request.accept,
        "Content-Type": request.content_type,
        **request.headers,
        "Content-Length": str(len(request.body)),
    }
    if token:
        headers["Authorization"] = f"Bearer {token}"
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    try:
        return "\r\n".join(lines).encode("latin-1") + request.body
    except UnicodeEncodeError:
        raise TorchmarError("a header has characters that HTTP does not allow") from None
