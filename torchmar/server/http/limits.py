"""Limits on sizes and times of a client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes and times that a client may not exceed.

    Attributes:
        body: bytes of a request's body; TorchServe's ``max_request_size``.
        header: bytes of all headers of a request.
        target: bytes of the target in the request line, ``/predictions/m?x=1``.
        header_seconds: for a request's headers to arrive, from their first byte.
        body_seconds: without a byte of the body arriving, or of the response being received.
        idle_seconds: without a request.
        connections: open at a time.
    """

    body: int = 6_553_500
    header: int = 65_536
    target: int = 16_384
    header_seconds: float = 30
    body_seconds: float = 60
    idle_seconds: float = 75
    connections: int = 4096
