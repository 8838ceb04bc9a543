"""The actions of a plan, one value each."""

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
        """What is done, without the verb."""
        return f"{self.source} to {self.destination}"


@dataclass(frozen=True)
class Derive:
    """Write an archive with the content of ``source`` and another configuration; see `torchmar.archive.derive`."""

    model: str
    version: str
    source: Path
    config: Mapping[str, Any]
    destination: Path

    @property
    def text(self) -> str:
        """What is done, without the verb."""
        return f"{self.destination.name} from {self.source.name}"


@dataclass(frozen=True)
class Register:
    """Register an archive and wait for its workers; None leaves a setting to the server.

    ``archive`` is where its content can be read before anything is done; None: not on this machine.
    """

    model: str
    version: str
    url: str
    min_workers: int
    max_workers: int
    batch_size: int | None = None
    max_batch_delay: int | None = None
    response_timeout: int | None = None
    startup_timeout: int | None = None
    devices: tuple[int, ...] | None = None
    archive: Path | None = None

    @property
    def text(self) -> str:
        """What is done, without the verb."""
        return f"{self.model} {self.version}, {workers(self.min_workers)}"


@dataclass(frozen=True)
class _Resize:
    model: str
    version: str
    before: int
    min_workers: int
    max_workers: int

    @property
    def text(self) -> str:
        """What is done, without the verb."""
        return f"{self.model} {self.version}, {self.before} to {workers(self.min_workers)}"


class ScaleUp(_Resize):
    """Start more workers of a version, or allow for more."""


class ScaleDown(_Resize):
    """Take workers from a version that has been drained."""


@dataclass(frozen=True)
class Check:
    """Ask a version its samples, warm it up and time it; ``archive`` is where its samples are."""

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
        """What is done, without the verb."""
        return f"{self.model} {self.version}"


@dataclass(frozen=True)
class Switch:
    """Make a version the default.

    Attributes:
        before: the version that was the default.
        drain_seconds: seconds that an answer of the new one takes at the most, should it have to go again.
        parked: whether it is meant to have no workers.
    """

    model: str
    version: str
    before: str
    drain_seconds: int
    parked: bool = False

    @property
    def text(self) -> str:
        """What is done, without the verb."""
        return f"{self.model} {self.before} to {self.version}"


@dataclass(frozen=True)
class Drained:
    """A version to wait for, and seconds that an answer of it takes at the most."""

    model: str
    version: str
    seconds: int


@dataclass(frozen=True)
class Drain:
    """Wait until versions that get no more traffic have answered."""

    versions: tuple[Drained, ...]

    @property
    def text(self) -> str:
        """What is done, without the verb."""
        names = ", ".join(f"{one.model} {one.version}" for one in self.versions[:3])
        more = f" and {len(self.versions) - 3} more" if len(self.versions) > 3 else ""
        return f"{names}{more}, {max(one.seconds for one in self.versions)} s"


@dataclass(frozen=True)
class Remove:
    """Unregister a version that has been drained; ``file`` is its derived archive, which goes, too."""

    model: str
    version: str
    file: Path | None = None

    @property
    def text(self) -> str:
        """What is done, without the verb."""
        return f"{self.model} {self.version}"


Action = Copy | Derive | Register | ScaleUp | Check | Switch | Drain | ScaleDown | Remove


def verb(action: Action) -> str:
    """Return the name of an action: ``register``, ``scale-up``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", type(action).__name__).lower()


def document(action: Action) -> dict[str, Any]:
    """Return an action as JSON has it."""
    return {"step": verb(action), **{field.name: _plain(getattr(action, field.name)) for field in fields(action)}}


def workers(count: int) -> str:
    """Return a number of workers in words."""
    return f"{count} worker{'' if count == 1 else 's'}"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Drained):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(value) if isinstance(value, Mapping) else value
