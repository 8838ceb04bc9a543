"""HTTP to one API of a server: tokens, calls that are safe to repeat, errors as exceptions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import requests

from torchmar.connection.endpoint import KEY_FILE, RUN_FOLDER, Api, Endpoint
from torchmar.connection.error_responses import refusal, which_address
from torchmar.connection.tokens import Tokens
from torchmar.connection.transport import Transport
from torchmar.errors import CertificateError, ConnectError, ResponseTimeoutError, ServerError, UnauthorizedError

__all__ = ["KEY_FILE", "RUN_FOLDER", "Api", "Connection", "Endpoint"]

_READS = ("GET", "OPTIONS")
_STARTING = (502, 503, 504)  # what a proxy, or a server without workers yet, says
_FIRST_WAIT = 0.1  # seconds; four times as long each time

Read = TypeVar("Read")


class Connection:
    """Requests to one API of a server. Not for use by several threads at once.

    What is repeated, and when:

    - any call whose connection could not be made: nothing was sent;
    - besides, a call that only reads (GET, OPTIONS) when the connection broke, or when it is
      answered with 502, 503 or 504;
    - any call whose token was refused, when the key file has another one by now: it was not carried out.

    What may have been carried out is never repeated, so that nothing is registered twice. Nor is
    a call that timed out: who set the limit does not want to wait longer.

    Args:
        server: where it is.
        api: which API; each has a token of its own.
        timeout: seconds to wait for an answer.
        retries: how often a call is repeated; it takes half a second in all.

    Raises:
        TorchmarError: an address is none.
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
    ) -> requests.Response:
        """Send a request and return the answer if its status is below 300.

        Raises:
            ConnectError: the connection was refused.
            ResponseTimeoutError: there was no response in time.
            CertificateError: the server's certificate is not trusted.
            ServerError: the server answered with an error; UnauthorizedError, NotFoundError or ConflictError for these.
            InsecureError: the token would travel in plain text.
            TorchmarError: the key file cannot be read.
        """
        repeats = self._retries if retries is None else retries
        waits = [_FIRST_WAIT * 4**number for number in range(repeats)]
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
                )
            except ConnectError as error:
                safe = not error.sent or method in _READS
                if not waits or not safe or isinstance(error, ResponseTimeoutError | CertificateError):
                    if error.sent and method not in _READS and self._api == "management":
                        error.hint = "it may have been carried out all the same; torchmar models tells"
                    if isinstance(error, ResponseTimeoutError) and error.sent and self._api == "inference":
                        error.hint = "torchmar models tells how many of the model's workers answer"
                    raise
            else:
                if response.status_code < 300:
                    return response
                if response.is_redirect:
                    elsewhere = response.headers["location"]
                    raise ServerError(
                        f"the server sends on to {elsewhere}",
                        status=response.status_code,
                        hint=which_address(self._api),
                    )
                refused = refusal(response.status_code, response.content, response.reason, self._api)
                if isinstance(refused, UnauthorizedError) and not renewed and self.tokens.other_than(self._api, token):
                    renewed = True
                    continue
                if not waits or method not in _READS or response.status_code not in _STARTING:
                    raise refused
            time.sleep(waits.pop(0))

    def read(self, value: Callable[[Any], Read], method: str, path: str, **options: Any) -> Read:
        """Send a request and return what ``value`` makes of the JSON in the answer.

        Args:
            value: fails with KeyError, TypeError or the like where the answer is not the server's.
            method: as all that follow, for `ask`.
            path: below the address.
            options: the others.

        Raises:
            ConnectError: the answer is not of this API.
            TorchmarError: as `ask` does.
        """
        response = self.request(method, path, **options)
        try:
            return value(response.json())
        except (ValueError, TypeError, LookupError, AttributeError):
            raise ConnectError(
                f"no {self._api} API at {self._address}: something else answers there",
                sent=True,
                hint=which_address(self._api),
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()
