"""The errors of torchmar.

::

    TorchmarError
    ├── PropertiesError         config.properties cannot be read, or a value in it is wrong
    ├── RecipeError             archive.yaml has problems (all of them, each with its line)
    ├── ManifestError           MAR-INF/MANIFEST.json is missing or not TorchServe's schema
    ├── ArchiveError            an archive cannot be written, opened or extracted
    ├── WorkerError             a worker did not answer
    │   └── LoadError           ... because the handler failed to import or load (has a traceback)
    ├── EngineError             a server did not start or stop
    │   ├── BindError           ... because it cannot listen on one of its addresses
    │   └── ModelFailedError    ... because the worker of one model failed (has a traceback)
    ├── InsecureError           a token would travel in plain text; nothing was sent
    ├── ConnectError            no server answers at the address
    │   ├── ResponseTimeoutError    ... in time
    │   └── CertificateError    ... with a certificate that is trusted
    └── ServerError             the server answered with an error (has its status and message)
        ├── UnauthorizedError   the token is missing, wrong or expired
        ├── NotFoundError       no such model or version
        └── ConflictError       the version is registered already

Each says what is wrong and where in its message, and what to do next in ``hint``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class TorchmarError(Exception):
    """Base of all errors that torchmar raises intentionally."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class PropertiesError(TorchmarError):
    """A key of a ``config.properties`` is wrong."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem in a file: its place, a description and a hint."""

    file: str
    line: int
    message: str
    place: str = ""
    hint: str = ""

    @property
    def where(self) -> str:
        """``file:line``; of line 0, which is the whole file, ``file``."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def show(self) -> str:
        """Return ``file:line: place: message (hint)`` on one line."""
        place = f"{self.place}: " if self.place else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.where}: {place}{self.message}{hint}"


class RecipeError(TorchmarError):
    """A recipe has problems; the error contains all of them, in the order of their lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("\n".join(problem.show() for problem in self.problems))


class ManifestError(TorchmarError):
    """A manifest is missing or wrong."""


class ArchiveError(TorchmarError):
    """An archive cannot be written, opened or extracted."""


class WorkerError(TorchmarError):
    """A worker did not answer; ``log`` is the end of its output."""

    def __init__(self, message: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class LoadError(WorkerError):
    """A handler failed to import or load; ``traceback`` is the handler's own."""

    def __init__(self, message: str, *, traceback: str, log: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint, log=log)
        self.traceback = traceback


class EngineError(TorchmarError):
    """A server did not start or stop; ``log`` is the end of its output."""

    def __init__(self, message: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class BindError(EngineError):
    """A server cannot listen on one of its addresses."""


class ModelFailedError(EngineError):
    """A model did not start; ``traceback`` is that of its worker."""

    def __init__(self, message: str, *, traceback: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.traceback = traceback


class InsecureError(TorchmarError):
    """A token would have been sent in plain text; no request was sent."""


class ConnectError(TorchmarError):
    """No server answers at an address; ``sent``: whether a request may have reached a server."""

    def __init__(self, message: str, *, sent: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.sent = sent


class ResponseTimeoutError(ConnectError):
    """A server did not answer in time."""


class CertificateError(ConnectError):
    """The certificate of a server is not trusted; no request was sent."""


class ServerError(TorchmarError):
    """A server's error response: HTTP ``status``, error ``type`` and message."""

    def __init__(self, message: str, *, status: int, type: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.type = type


class UnauthorizedError(ServerError):
    """The token is missing, wrong or expired."""


class NotFoundError(ServerError):
    """A model or version is not registered."""


class ConflictError(ServerError):
    """A model version is registered already."""
