"""The decoding of request bodies with a Content-Encoding (RFC 9110, 8.4), piece by piece and within a size limit."""

from __future__ import annotations

import zlib
from typing import Any

from torchmar.server.api_error import ApiError

_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_CODINGS = ("gzip", "deflate")
# Limit for streams in a body: each copies the data after it, which for thousands in one piece would take seconds.
_MAX_MEMBERS = 64
_IDENTITY = ("", "identity")


class Decoder:
    """The decoder of a body.

    Args:
        coding: ``gzip`` or ``deflate``; deflate may lack zlib's header, because some clients omit it.
        limit: largest size of a decoded body in bytes.
    """

    def __init__(self, coding: str, limit: int) -> None:
        self._coding, self._limit = coding, limit
        self._size = self._members = 0
        self._head = b""
        self._stream: Any = None

    def decode(self, piece: bytes) -> list[bytes]:
        """Return the decoded content of a piece of the body.

        Raises:
            ApiError: 413, the decoded body exceeds the limit, and is not decoded further; 400, the body is not in this
                coding.
        """
        if self._stream is None:
            piece = self._head + piece
            if len(piece) < 2:
                self._head = piece
                return []
            self._open(piece)
        decoded: list[bytes] = []
        while piece:
            if self._stream.eof:
                self._open(piece)
            decoded.append(self._decompress(piece))
            piece = self._stream.unused_data
        return decoded

    def finish(self) -> None:
        """Check that the body is complete; an empty one is. Raises ApiError (400)."""
        if self._head if self._stream is None else not self._stream.eof:
            raise self._broken("it is truncated")

    def _open(self, start: bytes) -> None:
        """Start a stream of the coding; gzip allows several streams in a row."""
        if self._members >= (_MAX_MEMBERS if self._coding == "gzip" else 1):
            raise self._broken("bytes follow its end")
        self._members += 1
        if self._coding == "gzip":
            self._stream = zlib.decompressobj(_GZIP)
        else:
            # RFC 1950, 2.2: the method is 8, and the first two bytes are a multiple of 31.
            is_zlib = start[0] & 15 == 8 and (start[0] << 8 | start[1]) % 31 == 0
            self._stream = zlib.decompressobj(_ZLIB if is_zlib else _RAW)

    def _decompress(self, piece: bytes) -> bytes:
        try:
            # One byte beyond the limit shows that the body is too large, without decoding the rest.
            part: bytes = self._stream.decompress(piece, self._limit - self._size + 1)
        except zlib.error as error:
            raise self._broken(str(error)) from None
        self._size += len(part)
        if self._size > self._limit:
            raise ApiError(413, "BadRequestException", f"The decoded body is larger than {self._limit} bytes.")
        return part

    def _broken(self, reason: str) -> ApiError:
        return ApiError(400, "BadRequestException", f"The body is not {self._coding}, its Content-Encoding: {reason}.")


def decoder(content_encoding: str, limit: int) -> Decoder | None:
    """Return the decoder for a Content-Encoding header; None: the body is not encoded.

    Args:
        content_encoding: value of the header; empty if there is none.
        limit: largest size of a decoded body in bytes.

    Raises:
        ApiError: 415, with ``Accept-Encoding``, for any other coding, or several codings.
    """
    coding = content_encoding.strip().lower().removeprefix("x-")
    if coding in _IDENTITY:
        return None
    if coding not in _CODINGS:
        message = f"Content-Encoding {content_encoding[:40]!r} is not supported; send the body as it is, or as gzip."
        raise ApiError(415, "BadRequestException", message, {"Accept-Encoding": ", ".join(_CODINGS)})
    return Decoder(coding, limit)
