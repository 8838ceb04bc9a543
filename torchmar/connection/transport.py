"""One HTTP request to an address; failures as exceptions."""

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
        name: what is at the address, for messages.
        server: the rules for tokens and certificates.

    Raises:
        TorchmarError: the address is none, or the file of certificates is missing.
    """

    def __init__(self, address: str, name: str, server: Endpoint) -> None:
        parts = _checked(address)
        self._address = self._base = address.rstrip("/")
        self._name = name
        self._here = parts.scheme == "unix" or is_local(parts.hostname)
        self._private = parts.scheme == "https" or self._here or server.allow_plain_http
        self._session = requests.Session()
        # .netrc would take the place of the token, and a proxy has no business between programs of one machine.
        self._session.trust_env = False
        if not self._here:
            self._session.proxies.update(requests.utils.get_environ_proxies(address))
        if parts.scheme == "unix":
            self._base = "http://localhost"
            self._session.mount(self._base, UnixAdapter(address.partition(":")[2]))
        if isinstance(server.verify, Path):
            check_certificates(server.verify)
            self._session.verify = str(server.verify)
            self._session.mount("https://", _Trusting())
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
    ) -> requests.Response:
        """Send one request, once, and return the answer whatever its status is; redirections are not followed.

        Raises:
            InsecureError: the token would travel in plain text.
            CertificateError: the server's certificate is not to be trusted.
            ResponseTimeoutError: the answer did not come within ``timeout`` seconds.
            ConnectError: there was no answer for another reason.
        """
        if token is not None and not self._private:
            raise InsecureError(
                f"the token would go to {self._address} in plain text",
                hint=f"use https or an SSH tunnel; --allow-plain-http or {PLAIN_HTTP_VARIABLE}=1 sends it all the same",
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
            )
        except (requests.exceptions.InvalidHeader, UnicodeEncodeError):
            # Its message shows the header, which may be the token.
            wrong = next((name for name, value in (headers or {}).items() if not _fits_header(value)), "the token")
            raise TorchmarError(f"{wrong} has characters that HTTP does not allow in a header") from None
        except requests.RequestException as error:
            raise self._no_answer(error, timeout) from None

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _no_answer(self, error: requests.RequestException, timeout: float) -> ConnectError:
        causes = {type(cause): cause for cause in _causes(error)}

        def cause(kind: type[Exception]) -> Any:
            return next((one for found, one in causes.items() if issubclass(found, kind)), None)

        if isinstance(error, requests.ReadTimeout):
            return ResponseTimeoutError(f"{self._address} did not answer within {timeout:g} s", sent=True)
        if isinstance(error, requests.ConnectTimeout):
            seconds = min(_CONNECT_SECONDS, timeout)
            return ResponseTimeoutError(f"{self._address} cannot be reached: no connection within {seconds:g} s")
        if certificate := cause(ssl.SSLCertVerificationError):
            return CertificateError(
                f"the certificate of {self._address} is not trusted: {certificate.verify_message}",
                hint="--ca-file names the certificate of who signed it, or its own",
            )
        if (tls := cause(ssl.SSLError)) and tls.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return ConnectError(f"no {self._name} at {self._address}: it does not speak TLS", hint="http:// perhaps")
        never_sent = cause(NewConnectionError) or cause(ConnectTimeoutError)
        if cause(NameResolutionError):
            why = "cannot resolve the host name"
        elif cause(ConnectionRefusedError):
            why = "connection refused"
        elif never_sent:
            why = str((cause(OSError) or never_sent).args[-1])
        else:
            why = "the connection was closed before there was an answer"
        hint = "torchmar serve" if never_sent and self._here else ""
        return ConnectError(f"no {self._name} at {self._address}: {why}", sent=not never_sent, hint=hint)


class _Trusting(HTTPAdapter):
    """Trust a certificate that is named, whoever signed it."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        context = create_urllib3_context()
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        super().init_poolmanager(*args, ssl_context=context, **options)


def check_certificates(file: Path) -> None:
    """Find out whether ``file`` has certificates to trust.

    Raises:
        TorchmarError: it has none.
    """
    if not file.is_file():
        raise TorchmarError(f"{file}: there is no such file of certificates")
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
        # Not shown: messages end up in logs.
        raise TorchmarError("an address has no place for a name and password", hint="tokens have a key file")
    none = TorchmarError(f"{address!r} is not an address", hint="write it like https://host:8080/path")
    try:
        parts = urlsplit(address)
        _ = parts.port  # found to be none when it is read
    except ValueError:
        raise none from None
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return parts
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise none
    return parts


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all that stand behind it: requests wraps urllib3's, which wraps the system's."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]
