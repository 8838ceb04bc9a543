"""Limits on sizes and times of a client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on sizes and times of a client.

    Attributes:
        body: bytes of a request's body; TorchServe's ``max_request_size``.
        header: bytes of all headers of a request.
        target: bytes of the target in the request line, ``/predictions/m?x=1``.
        header_seconds: time for a request's headers to arrive, from their first byte.
        body_seconds: time without a received byte of the body, or a sent byte of the response.
        idle_seconds: time without a request.
        connections: number of open connections.
    """

    body: int = 6_553_500
    header: int = 65_536
    target: int = 16_384
    header_seconds: float = 30
    body_seconds: float = 60
    idle_seconds: float = 75
    connections: int = 4096
