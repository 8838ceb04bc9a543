"""One request and one response, of a worker process or a server."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torchmar.errors import TorchmarError

ANY = "*/*"


@dataclass(frozen=True)
class Request:
    """A request, for a worker or a server.

    Attributes:
        body: the sent bytes.
        content_type: content type of the body, for the header ``Content-Type``.
        explain: whether an explanation is requested instead of a prediction.
        accept: accepted content type of the response, for the header ``Accept``.
        headers: further headers.
    """

    body: bytes
    content_type: str = "application/octet-stream"
    explain: bool = False
    accept: str = ANY
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """A response, of a worker or a server.

    Attributes:
        status: the HTTP status.
        body: the received bytes.
        headers: values by lower-case name.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_type(self) -> str:
        """The content type without parameters; empty: there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip()


def content_type(name: str) -> str:
    """Return the content type for the suffix of a file."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def read(file: Path, *, explain: bool = False, accept: str = ANY, headers: Mapping[str, str] | None = None) -> Request:
    """Return a request with the bytes of ``file`` and the content type for its suffix.

    Raises:
        TorchmarError: the file cannot be read.
    """
    try:
        return Request(file.read_bytes(), content_type(file.name), explain, accept, headers or {})
    except OSError as error:
        raise TorchmarError(f"{file} cannot be read: {error.strerror}") from None
