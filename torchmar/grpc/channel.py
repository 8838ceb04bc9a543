"""Calls over gRPC, with tokens, and with the same exceptions as REST."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import Message

from torchmar.connection import Api, Endpoint
from torchmar.connection.endpoint import PLAIN_HTTP_VARIABLE
from torchmar.connection.error_responses import TOO_LARGE, classified, which_address
from torchmar.connection.local import is_local
from torchmar.connection.tokens import Tokens
from torchmar.connection.transport import check_certificates
from torchmar.errors import (
    CertificateError,
    ConnectError,
    InsecureError,
    ResponseTimeoutError,
    ServerError,
    TorchmarError,
    UnauthorizedError,
)

Reply = TypeVar("Reply", bound=Message)
Self = TypeVar("Self", bound="Client")

# The HTTP statuses that TorchServe maps to gRPC codes.
_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 413,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
#: The metadata with the class of the server's exception, if the details do not end with it.
EXCEPTION = "torchserve-exception"
_NOT_FOUND = ("ModelNotFoundException", "ModelVersionNotFoundException")


class Channel:
    """Calls to one service of a server. For use by several threads.

    gRPC itself repeats calls that have not reached the server. Otherwise a call is only repeated if its token was
    invalid, and the key file has another one by now.

    Args:
        server: addresses, tokens and certificates.
        api: the API; each has its own address and token.
        service: full name of the service; it may be set to another service of the same API.
        timeout: seconds to wait for a response.

    Raises:
        TorchmarError: the address is invalid, or certificates cannot be read.
    """

    def __init__(self, server: Endpoint, api: Api, service: str, timeout: float) -> None:
        self._api = api
        self.service = service
        self._timeout = timeout
        self._address = server.grpc_inference if api == "inference" else server.grpc_management
        self._tokens = Tokens(server)
        parts = _parts(self._address)
        local = is_local(parts.hostname)
        self._private = parts.scheme == "grpcs" or local or server.allow_plain_http
        # TorchServe has its own limits; gRPC's default of 4 MB is less than the explanation of an image needs.
        options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", -1)]
        if local:
            options.append(("grpc.enable_http_proxy", 0))
        if parts.scheme == "grpcs":
            self._channel = grpc.secure_channel(parts.netloc, _credentials(server), options)
        else:
            self._channel = grpc.insecure_channel(parts.netloc, options)

    def call(
        self,
        method: str,
        request: Message,
        reply: type[Reply],
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Reply:
        """Return the response to a request.

        Raises:
            ConnectError: the connection was refused.
            ResponseTimeoutError: there was no response in time.
            CertificateError: the server's certificate is not trusted.
            ServerError: the response is an error; its subclasses are UnauthorizedError, NotFoundError and
                ConflictError.
            InsecureError: the token would travel in plain text.
        """
        call = self._channel.unary_unary(
            f"/{self.service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        seconds = timeout or self._timeout
        for retry in (True, False):
            token = self._token()
            try:
                response: Reply = call(request, timeout=seconds, metadata=_metadata(token, metadata))
                return response
            except grpc.RpcError as error:
                raised = self._exception(error, seconds)
                if not (retry and isinstance(raised, UnauthorizedError) and self._tokens.other_than(self._api, token)):
                    raise raised from None
        raise AssertionError

    def stream(
        self,
        method: str,
        requests: Message | Iterable[Message],
        reply: type[Reply],
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Iterator[Reply]:
        """Yield the responses to one request, or to several requests, which are sent while responses arrive.

        Raises:
            TorchmarError: for the reasons of `call`.
        """
        path = f"/{self.service}/{method}"
        seconds = timeout or self._timeout
        settings: dict[str, Any] = {"timeout": seconds, "metadata": _metadata(self._token(), metadata)}
        try:
            if isinstance(requests, Message):
                call = self._channel.unary_stream(path, type(requests).SerializeToString, reply.FromString)
                yield from call(requests, **settings)
            else:
                calls = self._channel.stream_stream(path, _serialized, reply.FromString)
                yield from calls(iter(requests), **settings)
        except grpc.RpcError as error:
            raise self._exception(error, seconds) from None

    def close(self) -> None:
        """Close the connection; the channel cannot be used again."""
        self._channel.close()

    def _token(self) -> str | None:
        token = self._tokens.current(self._api)
        if token is not None and not self._private:
            raise InsecureError(
                f"the token would be sent to {self._address} in plain text",
                hint=f"use grpcs or an SSH tunnel; --allow-plain-http or {PLAIN_HTTP_VARIABLE}=1 sends it nevertheless",
            )
        if token is not None and not (token.isascii() and token.isprintable()):
            raise TorchmarError("the token has characters that gRPC does not allow")
        return token

    def _exception(self, error: grpc.RpcError, seconds: float) -> TorchmarError:
        """Return the exception for an error, which is the same as over REST."""
        assert isinstance(error, grpc.Call)
        code, details = error.code(), error.details() or ""
        message, _, last = details.rpartition("\n")
        # The last line is the class of the server's exception, with its package, or as BadRequestException.()
        kind = last.removesuffix(".()").rpartition(".")[2]
        if not kind.endswith("Exception"):
            kind = str(dict(error.trailing_metadata() or ()).get(EXCEPTION, ""))
            message = details
        if not kind:
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return ResponseTimeoutError(f"{self._address} did not answer within {seconds:g} s", sent=True)
            if code is grpc.StatusCode.UNAVAILABLE:
                return self._connect_error(details)
            if "RST_STREAM" in details:
                return ServerError("the server ended the call without a response", status=413, hint=TOO_LARGE)
            if code is grpc.StatusCode.UNIMPLEMENTED:
                return ServerError(message, status=501, hint=which_address(self._api))
        status = _STATUS.get(code, 500)
        if kind in _NOT_FOUND:
            status = 404  # TorchServe's code for predictions is INTERNAL
        elif message.startswith("Token Authorization failed"):
            status, kind = 400, "InvalidKeyException"
        elif message == "Model API disabled":
            status = 405
        return classified(
            status, kind, message or f"the server responded with {code.name}, without a message", self._api
        )

    def _connect_error(self, details: str) -> ConnectError:
        prefix = f"no {self._api} API over gRPC at {self._address}"
        if "CERTIFICATE_VERIFY_FAILED" in details:
            return CertificateError(
                f"the certificate of {self._address} is not trusted",
                hint="give its certificate, or that of its issuer, with --ca-file",
            )
        if "Connection refused" in details:
            return ConnectError(f"{prefix}: connection refused", hint="torchmar serve")
        if "errors resolving" in details or "DNS resolution" in details:
            return ConnectError(f"{prefix}: cannot resolve the host name")
        if "failed to connect" not in details:
            return ConnectError(f"{prefix}: the connection was closed before there was a response", sent=True)
        if "WRONG_VERSION_NUMBER" in details:
            return ConnectError(f"{prefix}: it does not speak TLS", hint="is it grpc://?")
        if "HTTP/2" in details:
            return ConnectError(f"{prefix}: it does not speak gRPC", hint="gRPC has a port of its own, by default 7070")
        return ConnectError(f"{prefix}: {details}")


class Client:
    """The base of the clients of a server's services: it has a channel, which a ``with`` block closes.

    Args:
        server: an endpoint, or its address.
        timeout: seconds to wait for a response.
    """

    _api: ClassVar[Api]
    _service: ClassVar[str]

    def __init__(self, server: Endpoint | str | None = None, timeout: float = 120.0) -> None:
        if isinstance(server, str):
            endpoint = (
                Endpoint(grpc_management=server) if self._api == "management" else Endpoint(grpc_inference=server)
            )
        else:
            endpoint = Endpoint.coerce(server, self._api)
        self._channel = Channel(endpoint, self._api, self._service, timeout)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def _parts(address: str) -> Any:
    with contextlib.suppress(ValueError):
        parts = urlsplit(address)
        if parts.scheme in ("grpc", "grpcs") and parts.hostname and parts.port and parts.path in ("", "/"):
            return parts
    raise TorchmarError(f"{address!r} is not an address", hint="write it like grpc://127.0.0.1:7070")


def _metadata(token: str | None, extra: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    authorization = () if token is None else (("authorization", f"Bearer {token}"),)
    return (*authorization, *(extra or {}).items())


def _serialized(request: Message) -> bytes:
    return request.SerializeToString()


def _credentials(server: Endpoint) -> grpc.ChannelCredentials:
    if server.verify is False:
        raise TorchmarError(
            "gRPC cannot skip the check of certificates", hint="set verify to the server's certificate file"
        )
    if server.verify is True:
        return grpc.ssl_channel_credentials()
    check_certificates(server.verify)
    return grpc.ssl_channel_credentials(server.verify.read_bytes())
