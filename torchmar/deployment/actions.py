"""The actions of a plan: one class each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Copy:
    """Copy an archive into the model store."""

    model: str
    source: Path
    destination: Path

    @property
    def text(self) -> str:
        """The objects of the action, as text."""
        return f"{self.source} to {self.destination}"


@dataclass(frozen=True, kw_only=True)
class Derive:
    """Write an archive with the content of ``source`` and another configuration; see `torchmar.archive.derive`."""

    model: str
    version: str
    source: Path
    config: Mapping[str, Any]
    destination: Path

    @property
    def text(self) -> str:
        """The objects of the action, as text."""
        return f"{self.destination.name} from {self.source.name}"


@dataclass(frozen=True, kw_only=True)
class Register:
    """Register an archive and wait for its workers.

    The server chooses settings that are None. ``archive`` is the file to check before the first action; None if the
    archive is not on this machine. ``digest`` is that of the file at a URL.
    """

    model: str
    version: str
    url: str
    min_workers: int
    max_workers: int
    digest: str | None = None
    batch_size: int | None = None
    max_batch_delay: int | None = None
    response_timeout: int | None = None
    startup_timeout: int | None = None
    devices: tuple[int, ...] | None = None
    archive: Path | None = None

    @property
    def text(self) -> str:
        """The objects of the action, as text."""
        return f"{self.model} {self.version}, {workers(self.min_workers)}"


@dataclass(frozen=True, kw_only=True)
class _Resize:
    model: str
    version: str
    before: int
    min_workers: int
    max_workers: int

    @property
    def text(self) -> str:
        """The objects of the action, as text."""
        return f"{self.model} {self.version}, {self.before} to {workers(self.min_workers)}"


class ScaleUp(_Resize):
    """Start more workers of a version, or raise their maximum."""


class ScaleDown(_Resize):
    """Remove workers of a version that has been drained."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Send a version its samples, which are in ``archive``; warm it up; measure its latency.

    ``requests`` is a folder of more requests; ``max_latency`` is in milliseconds.
    """

    model: str
    version: str
    archive: Path | None
    samples: bool
    requests: Path | None
    warmup_requests: int
    at_once: int
    max_latency: int | None

    @property
    def text(self) -> str:
        """The objects of the action, as text."""
        return f"{self.model} {self.version}"


@dataclass(frozen=True, kw_only=True)
class Switch:
    """Make a version the default.

    Attributes:
        before: the current default version.
        drain_seconds: longest time of a response from the new version in seconds; an undo waits for this time.
        parked: whether the version intentionally has no workers.
    """

    model: str
    version: str
    before: str
    drain_seconds: int
    parked: bool = False

    @property
    def text(self) -> str:
        """The objects of the action, as text."""
        return f"{self.model} {self.before} to {self.version}"


@dataclass(frozen=True)
class Drained:
    """A version to drain, with the longest time of one response in seconds."""

    model: str
    version: str
    seconds: int


@dataclass(frozen=True)
class Drain:
    """Wait until versions that get no more traffic have answered all requests."""

    versions: tuple[Drained, ...]

    @property
    def text(self) -> str:
        """The objects of the action, as text."""
        names = ", ".join(f"{version.model} {version.version}" for version in self.versions[:3])
        more = f" and {len(self.versions) - 3} more" if len(self.versions) > 3 else ""
        return f"{names}{more}, {max(version.seconds for version in self.versions)} s"


@dataclass(frozen=True)
class Remove:
    """Unregister a version that has been drained; ``file`` is its derived archive, which is also deleted."""

    model: str
    version: str
    file: Path | None = None

    @property
    def text(self) -> str:
        """The objects of the action, as text."""
        return f"{self.model} {self.version}"


@dataclass(frozen=True)
class SetRoute:
    """Set the model of a path; with ``version`` None, requests get its default version."""

    path: str
    model: str
    version: str | None = None

    @property
    def text(self) -> str:
        """The objects of the action, as text."""
        return f"{self.path} to {self.model}{f' {self.version}' if self.version is not None else ''}"


@dataclass(frozen=True)
class RemoveRoute:
    """Remove a route."""

    path: str

    @property
    def text(self) -> str:
        """The objects of the action, as text."""
        return self.path


Action = Copy | Derive | Register | ScaleUp | Check | Switch | SetRoute | RemoveRoute | Drain | ScaleDown | Remove


def verb(action: Action) -> str:
    """Return the name of an action: ``register``, ``scale-up``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", type(action).__name__).lower()


def document(action: Action) -> dict[str, Any]:
    """Return an action as JSON values."""
    return {"step": verb(action), **{field.name: _plain(getattr(action, field.name)) for field in fields(action)}}


def workers(count: int) -> str:
    """Return a number of workers as text: ``1 worker``, ``2 workers``."""
    return f"{count} worker{'' if count == 1 else 's'}"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Drained):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(value) if isinstance(value, Mapping) else value
