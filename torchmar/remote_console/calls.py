"""Calls of another server's APIs for a browser: the token is added here, and errors become responses."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from torchmar.connection import Connection, Endpoint
from torchmar.connection.endpoint import Api
from torchmar.errors import ConnectError, ResponseTimeoutError, ServerError, TorchmarError
from torchmar.server.api_error import ApiError

SECONDS = 300.0
_JSON = "application/json"


class Answer(NamedTuple):
    """A response below status 300."""

    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str]


async def call(
    endpoint: Endpoint,
    api: Api,
    method: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send a request to an API of a server, with its token.

    Raises:
        ApiError: the server answered with an error, or does not answer.
    """

    def send() -> Answer:
        connection = Connection(endpoint, api, SECONDS)
        try:
            response = connection.request(method, path, query=query, body=body, headers=headers, retries=0)
            content_type = response.headers.get("content-type", _JSON)
            return Answer(response.status_code, response.content, content_type, response.headers)
        finally:
            connection.close()

    try:
        return await asyncio.to_thread(send)
    except TorchmarError as error:
        raise api_error(error) from None


def api_error(error: TorchmarError) -> ApiError:
    """Return the response for a browser to an error of a call."""
    if isinstance(error, ServerError):
        # A token that the server rejects is not the browser's: a status 401 would end the browser's session.
        rejected = error.status == 401 or (error.status == 400 and error.type == "InvalidKeyException")
        status = 502 if rejected or error.status < 400 else error.status
        return ApiError(status, error.type or "InternalServerException", error.message)
    status = 504 if isinstance(error, ResponseTimeoutError) else 503 if isinstance(error, ConnectError) else 502
    return ApiError(status, "ServiceUnavailableException", error.message)
