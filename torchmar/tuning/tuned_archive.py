"""The properties of an archive that a tuning depends on, read once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torchmar.archive import Archive

_HANDLERS = "torchmar_handlers"
_QUEUE_SIZE = 100  # TorchServe's default


@dataclass(frozen=True, kw_only=True)
class TunedArchive:
    """An archive to tune.

    Attributes:
        path: path of the ``.mar``.
        name: name of the model.
        version: version of the archive.
        digest: digest of its content.
        queue_size: largest number of waiting requests on a server.
        has_stages: whether its configuration has stages.
        has_threads: whether its configuration sets a number of threads.
        carries_handlers: whether it contains torchmar's handlers: handlers that build on them have their options, and
            can be split into stages.
    """

    path: Path
    name: str
    version: str
    digest: str
    queue_size: int
    has_stages: bool
    has_threads: bool
    carries_handlers: bool

    @classmethod
    def read(cls, path: Path) -> TunedArchive:
        """Return the properties of an archive.

        Raises:
            ArchiveError: the file is no archive.
        """
        with Archive(path) as archive:
            options = archive.config.get("handler")
            return cls(
                path=path,
                name=archive.manifest.name,
                version=archive.manifest.version,
                digest=archive.digest,
                queue_size=int(archive.number("jobQueueSize", _QUEUE_SIZE)),
                has_stages="stages" in archive.config,
                has_threads=isinstance(options, dict) and "threads" in options,
                carries_handlers=any(member.name == f"{_HANDLERS}/base.py" for member in archive.members),
            )
