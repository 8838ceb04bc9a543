"""One HTTP request to an address, with failures as exceptions."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.ssl_ import create_urllib3_context

from torchmar.connection.endpoint import PLAIN_HTTP_VARIABLE, Endpoint
from torchmar.connection.local import is_local
from torchmar.connection.unix import UnixAdapter
from torchmar.errors import CertificateError, ConnectError, InsecureError, ResponseTimeoutError, TorchmarError

_CONNECT_SECONDS = 5.0


class Transport:
    """Requests to one address. Not for use by several threads at once.

    Args:
        address: ``http://`` or ``https://``, with the path that all requests start with; or ``unix:/PATH``, a socket.
        name: name of the API at the address, for messages.
        server: endpoint, with the rules for tokens and certificates.

    Raises:
        TorchmarError: the address is invalid, or the file of certificates is missing.
    """

    def __init__(self, address: str, name: str, server: Endpoint) -> None:
        parts = _checked(address)
        self._address = self._base = address.rstrip("/")
        self._name = name
        self._local = parts.scheme == "unix" or is_local(parts.hostname)
        self._private = parts.scheme == "https" or self._local or server.allow_plain_http
        self._session = requests.Session()
        # Otherwise .netrc could replace the token, and a proxy could stand between programs of one machine.
        self._session.trust_env = False
        if not self._local:
            self._session.proxies.update(requests.utils.get_environ_proxies(address))
        if parts.scheme == "unix":
            self._base = "http://localhost"
            self._session.mount(self._base, UnixAdapter(address.partition(":")[2]))
        if isinstance(server.verify, Path):
            check_certificates(server.verify)
            self._session.verify = str(server.verify)
            self._session.mount("https://", _PinnedCertificates())
        else:
            self._session.verify = server.verify

    def send(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        query: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float,
        stream: bool = False,
    ) -> requests.Response:
        """Send a request once, and return the response, with any status; redirects are not followed.

        With ``stream``, the body is read when the caller reads it; the caller also closes the response.

        Raises:
            InsecureError: the token would travel in plain text.
            CertificateError: the server's certificate is not trusted.
            ResponseTimeoutError: there was no response within ``timeout`` seconds.
            ConnectError: there was no response for another reason.
        """
        if token is not None and not self._private:
            raise InsecureError(
                f"the token would be sent to {self._address} in plain text",
                hint=f"use https or an SSH tunnel; --allow-plain-http or {PLAIN_HTTP_VARIABLE}=1 sends it nevertheless",
            )
        authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            return self._session.request(
                method,
                self._base + path,
                params={name: value for name, value in (query or {}).items() if value is not None},
                data=body,
                headers={**(headers or {}), **authorization},
                timeout=(min(_CONNECT_SECONDS, timeout), timeout),
                allow_redirects=False,
                stream=stream,
            )
        except (requests.exceptions.InvalidHeader, UnicodeEncodeError):
            # The message is not shown, because it contains the header, which may be the token.
            header = next((name for name, value in (headers or {}).items() if not _fits_header(value)), "the token")
            raise TorchmarError(f"{header} has characters that HTTP does not allow in a header") from None
        except requests.RequestException as error:
            raise self._connect_error(error, timeout) from None

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _connect_error(self, error: requests.RequestException, timeout: float) -> ConnectError:
        causes = {type(cause): cause for cause in _causes(error)}

        def cause(kind: type[Exception]) -> Any:
            return next((error for error_kind, error in causes.items() if issubclass(error_kind, kind)), None)

        if isinstance(error, requests.ReadTimeout):
            return ResponseTimeoutError(f"{self._address} did not answer within {timeout:g} s", sent=True)
        if isinstance(error, requests.ConnectTimeout):
            seconds = min(_CONNECT_SECONDS, timeout)
            return ResponseTimeoutError(f"{self._address} cannot be reached: no connection within {seconds:g} s")
        if certificate := cause(ssl.SSLCertVerificationError):
            return CertificateError(
                f"the certificate of {self._address} is not trusted: {certificate.verify_message}",
                hint="give its certificate, or that of its issuer, with --ca-file",
            )
        if (tls := cause(ssl.SSLError)) and tls.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return ConnectError(f"no {self._name} at {self._address}: it does not speak TLS", hint="is it http://?")
        never_sent = cause(NewConnectionError) or cause(ConnectTimeoutError)
        if cause(NameResolutionError):
            reason = "cannot resolve the host name"
        elif cause(ConnectionRefusedError):
            reason = "connection refused"
        elif never_sent:
            reason = str((cause(OSError) or never_sent).args[-1])
        else:
            reason = "the connection was closed before there was a response"
        hint = "torchmar serve" if never_sent and self._local else ""
        return ConnectError(f"no {self._name} at {self._address}: {reason}", sent=not never_sent, hint=hint)


class _PinnedCertificates(HTTPAdapter):
    """An adapter that only trusts given certificates, regardless of their issuer."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        context = create_urllib3_context()
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        super().init_poolmanager(*args, ssl_context=context, **options)


def check_certificates(file: Path) -> None:
    """Check that ``file`` contains certificates.

    Raises:
        TorchmarError: the file contains none, or cannot be read.
    """
    if not file.is_file():
        raise TorchmarError(f"{file} does not exist; certificates are read from it")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError:
        raise TorchmarError(f"{file} has no certificates in PEM") from None
    except OSError as error:
        raise TorchmarError(f"{file} cannot be read: {error.strerror}") from None


def _fits_header(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and all(ord(character) < 256 for character in value)


def _checked(address: str) -> Any:
    if "@" in address.partition("//")[2].partition("/")[0]:
        # The address is not shown, because messages are logged.
        raise TorchmarError("an address must not have a name and password", hint="tokens are read from a key file")
    invalid = TorchmarError(f"{address!r} is not an address", hint="write it like https://host:8080/path")
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises ValueError if the port is invalid
    except ValueError:
        raise invalid from None
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return parts
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise invalid
    return parts


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all its causes: requests wraps exceptions of urllib3, which wraps those of the system."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        cause = waiting.pop()
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            waiting += [*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__]
