"""HTTP requests to one API of a server, with tokens, retries, and errors as exceptions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import requests

from torchmar.connection.endpoint import KEY_FILE, RUN_FOLDER, Api, Endpoint
from torchmar.connection.error_responses import server_error, which_address
from torchmar.connection.tokens import Tokens
from torchmar.connection.transport import Transport
from torchmar.errors import CertificateError, ConnectError, ResponseTimeoutError, ServerError, UnauthorizedError

__all__ = ["KEY_FILE", "RUN_FOLDER", "Api", "Connection", "Endpoint"]

_READS = ("GET", "OPTIONS")
_STARTING = (502, 503, 504)  # statuses of a proxy, or of a server whose workers are starting
_FIRST_WAIT = 0.1  # seconds; multiplied by four each time

Read = TypeVar("Read")


class Connection:
    """Requests to one API of a server. Not for use by several threads at once.

    These requests are sent again:

    - any request whose connection could not be opened, so that nothing was sent;
    - a request that only reads (GET, OPTIONS), when the connection broke, or when the response is 502, 503 or 504;
    - any request with an invalid token, if the key file has another one by now: it was not carried out.

    A request that may have been carried out is never sent again, so that no model is registered twice. Nor is a
    request that timed out, because the timeout is that of the whole call.

    Args:
        server: addresses, tokens and certificates.
        api: the API; each has its own token.
        timeout: seconds to wait for a response.
        retries: number of repetitions of a request; the pauses between them add up to half a second.

    Raises:
        TorchmarError: an address is invalid.
    """

    def __init__(self, server: Endpoint, api: Api, timeout: float = 60.0, retries: int = 2) -> None:
        self._api = api
        self._timeout = timeout
        self._retries = retries
        self._address = server.inference if api == "inference" else server.management
        self._transport = Transport(self._address, f"{api} API", server)
        self.tokens = Tokens(server)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        retries: int | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """Send a request and return the response if its status is below 300.

        With ``stream``, the caller reads the body from the response as it arrives, and closes the response.

        Raises:
            ConnectError: the connection was refused.
            ResponseTimeoutError: there was no response in time.
            CertificateError: the server's certificate is not trusted.
            ServerError: the server answered with an error; its subclasses are UnauthorizedError, NotFoundError and
                ConflictError.
            InsecureError: the token would travel in plain text.
            TorchmarError: the key file cannot be read.
        """
        retries = self._retries if retries is None else retries
        waits = [_FIRST_WAIT * 4**number for number in range(retries)]
        renewed = False
        while True:
            token = self.tokens.current(self._api)
            try:
                response = self._transport.send(
                    method,
                    path,
                    token=token,
                    query=query,
                    body=body,
                    headers=headers,
                    timeout=timeout or self._timeout,
                    stream=stream,
                )
                self._check(response)
            except (ConnectError, ServerError) as error:
                token_rejected = isinstance(error, UnauthorizedError) and not renewed
                if token_rejected and self.tokens.other_than(self._api, token):
                    renewed = True
                    continue
                if not waits or not _repeatable(error, method):
                    self._add_hint(error, method)
                    raise
            else:
                return response
            time.sleep(waits.pop(0))

    def _check(self, response: requests.Response) -> None:
        """Raise ServerError if the status of a response is not below 300."""
        status = response.status_code
        if response.is_redirect:
            message = f"the server redirects to {response.headers['location']}"
            raise ServerError(message, status=status, hint=which_address(self._api))
        if status >= 300:
            raise server_error(status, response.content, response.reason, self._api)

    def _add_hint(self, error: ConnectError | ServerError, method: str) -> None:
        """Add a hint how to find out whether a request without a response was carried out, or why it takes long."""
        if not isinstance(error, ConnectError) or not error.sent:
            return
        if self._api == "management" and method not in _READS:
            error.hint = "the server may have carried it out nevertheless; torchmar models shows"
        if self._api == "inference" and isinstance(error, ResponseTimeoutError):
            error.hint = "torchmar models shows how many of the model's workers are ready"

    def read(self, value: Callable[[Any], Read], method: str, path: str, **options: Any) -> Read:
        """Send a request and return a value of the JSON in the response.

        Args:
            value: returns the value from the parsed JSON; raises KeyError, TypeError or similar if the response is not
                of this API.
            method: HTTP method, as for `request`.
            path: path below the address.
            options: further arguments of `request`.

        Raises:
            ConnectError: the response is not of this API.
            TorchmarError: for the reasons of `request`.
        """
        response = self.request(method, path, **options)
        try:
            return value(response.json())
        except (ValueError, TypeError, LookupError, AttributeError):
            raise ConnectError(
                f"no {self._api} API at {self._address}: another service responds there",
                sent=True,
                hint=which_address(self._api),
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


def _repeatable(error: ConnectError | ServerError, method: str) -> bool:
    """Return whether a failed request may be sent again, see `Connection`."""
    if isinstance(error, ServerError):
        return method in _READS and error.status in _STARTING
    if isinstance(error, ResponseTimeoutError | CertificateError):
        return False
    return not error.sent or method in _READS
