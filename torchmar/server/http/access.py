"""Access events: each request with its response, for the access log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torchmar.server.http.request import Request

_CLIENT_CLOSED_REQUEST = 499  # a status of nginx


class Access(NamedTuple):
    """A request and its response.

    Attributes:
        time: time of the event, in seconds since 1970.
        client: address of the peer.
        method: method, such as ``POST``; empty if the received bytes are not a request.
        target: target as the client sent it, with its query.
        status: status of the response; 499 if the client disconnected before it was complete.
        seconds: time from the end of the request's headers to the end of the response.
        request_id: the response's ``x-request-id``; empty if it has none.
        traceparent: the request's header of this name, or the one that continues the server's span;
            empty if there is neither.
    """

    time: float
    client: str
    method: str
    target: bytes
    status: int
    seconds: float
    request_id: str
    traceparent: str = ""


OnAccess = Callable[[Access], None]


def access(request: Request) -> Access:
    """Return the event of a request whose response is complete, or whose client has disconnected."""
    return Access(
        time=time.time(),
        client=request.client,
        method=request.method,
        target=request.target,
        status=request.status if request.complete else _CLIENT_CLOSED_REQUEST,
        seconds=time.monotonic() - request.received,
        request_id=next((value for name, value in request.response_headers if name == "x-request-id"), ""),
        traceparent=request.header("traceparent"),
    )
