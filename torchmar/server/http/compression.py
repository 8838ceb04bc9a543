"""Compression of response bodies with a coding that the client accepts (RFC 9110, section 12.5.3): gzip or deflate."""

from __future__ import annotations

import gzip
import zlib

_LEVEL = 1  # the fastest, because one thread answers all clients
_ENCODINGS = ("gzip", "deflate")


def accepted(header: str) -> str:
    """Return the coding for a client's ``Accept-Encoding``; empty: it accepts neither, or sends no such header."""
    best, quality = "", 0.0
    for choice in header.lower().split(",") if header else ():
        name, _, parameters = choice.partition(";")
        name, weight = name.strip(), _weight(parameters)
        if name in _ENCODINGS and weight > quality:
            best, quality = name, weight
    return best


def encode(body: bytes, encoding: str) -> bytes:
    """Return a body in a coding that `accepted` has returned."""
    if encoding == "gzip":
        return gzip.compress(body, _LEVEL, mtime=0)
    return zlib.compress(body, _LEVEL)  # with zlib's header, as HTTP's deflate requires


def _weight(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
