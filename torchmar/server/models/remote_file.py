"""A file on another machine: its bytes from an offset on, and its identity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

#: HTTP statuses after which another attempt may succeed.
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class TransferError(Exception):
    """A transfer failed, but may succeed at another attempt; the message is the reason, without secrets."""


class ChangedError(TransferError):
    """The remote file has changed since the start of its transfer."""


@dataclass(frozen=True)
class Transfer:
    """The bytes of a remote file from an offset on.

    Attributes:
        offset: offset of the first byte; 0 if the file has another identity than that of the caller.
        size: bytes of the whole file; None: unknown.
        identity: value that is equal for equal content; empty: there is none, so that the file cannot be continued.
        chunks: the bytes. If the file has changed, the iterator raises `TransferError`, possibly at its end.
    """

    offset: int
    size: int | None
    identity: str
    chunks: Iterator[bytes]


class RemoteFile(Protocol):
    """A file that can be read from an offset on."""

    def open(self, offset: int, identity: str) -> AbstractContextManager[Transfer]:
        """Start a transfer; blocking.

        Args:
            offset: offset of the first missing byte.
            identity: identity from an earlier transfer; empty: there was none.

        Raises:
            TransferError: the transfer may succeed at another attempt.
            ApiError: the transfer cannot succeed, or is not allowed.
        """
