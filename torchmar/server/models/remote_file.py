"""A file on another machine: its bytes from an offset on, and what identifies it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

#: Statuses of HTTP after which another attempt may succeed.
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class TransferError(Exception):
    """A transfer failed, and may succeed when it is tried again; the message is the reason, without secrets."""


class ChangedError(TransferError):
    """The remote file is another one than at the beginning of its transfer."""


@dataclass(frozen=True)
class Transfer:
    """The bytes of a remote file from an offset on.

    Attributes:
        offset: of the first byte; 0 if the file is another one than the identity of the caller.
        size: of the whole file, in bytes; None: unknown.
        identity: equal for equal content; empty if there is no such value, so that nothing can be continued.
        chunks: the bytes. They raise `TransferError`, also at the end, if the file has changed.
    """

    offset: int
    size: int | None
    identity: str
    chunks: Iterator[bytes]


class RemoteFile(Protocol):
    """A file that can be read from an offset on."""

    def open(self, offset: int, identity: str) -> AbstractContextManager[Transfer]:
        """Begin a transfer; blocking.

        Args:
            offset: of the first byte that is missing.
            identity: that an earlier transfer returned; empty: there was none.

        Raises:
            TransferError: it may succeed when it is tried again.
            ApiError: it cannot succeed, or is not allowed.
        """
