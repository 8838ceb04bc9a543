"""The startup report: a file in the run folder with the models that loaded or failed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torchmar.atomic import temporary_path
from torchmar.server.models.archive_urls import without_secrets

if TYPE_CHECKING:
    from torchmar.server.models.registry import Registry

FILE_NAME = "startup.json"


@dataclass(frozen=True)
class NotLoaded:
    """A model of the configuration that is not registered or whose workers are not ready; or all such models.

    Attributes:
        url: URL of its registration in the configuration; empty: all models.
        message: name of the model, and the reason.
        registered: whether it is registered, but its workers are not ready.
    """

    url: str
    message: str
    registered: bool


@dataclass(frozen=True)
class StartupReport:
    """The result of loading the models of a configuration; it is updated when a model is registered or removed.

    Attributes:
        failures: models that are not ready.
        warnings: warnings for the user.
    """

    failures: tuple[NotLoaded, ...] = ()
    warnings: tuple[str, ...] = ()


def of(registry: Registry) -> StartupReport:
    """Return the report of a server whose startup has finished."""
    startup = registry.startup
    failures = [
        NotLoaded(model.url, f"{model.key}: {without_secrets(model.url)} is not loaded: {message}", registered=False)
        for model, message in startup.failures.values()
    ]
    if problem := registry.problem:
        failures.append(NotLoaded("", problem, registered=False))
    for model in registry.models.values():
        for version in model.versions.values():
            pool = version.pool
            if pool.failure and pool.ready < pool.min_workers:
                reason = pool.failure.splitlines()[-1].strip()
                counts = f"{pool.ready} of {pool.min_workers} workers answer"
                message = f"{version.name} {version.version} ({version.shown_url}): {counts}: {reason}"
                failures.append(NotLoaded(version.url, message, registered=True))
    return StartupReport(tuple(failures), tuple(startup.warnings))


def write(report: StartupReport, folder: Path) -> None:
    """Write a report into a run folder."""
    part = temporary_path(folder / FILE_NAME)
    part.write_text(json.dumps(asdict(report), indent=2), encoding="utf-8")
    part.replace(folder / FILE_NAME)


def read(folder: Path) -> StartupReport | None:
    """Return the report in a run folder; None: the server has not finished its startup."""
    try:
        document = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    failures = (NotLoaded(**failure) for failure in document["failures"])
    return StartupReport(tuple(failures), tuple(document["warnings"]))


def remove(folder: Path) -> None:
    """Remove the report of an earlier server."""
    (folder / FILE_NAME).unlink(missing_ok=True)
