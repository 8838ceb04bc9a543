"""The status messages of the management API, in TorchServe's texts, for REST and gRPC."""

from __future__ import annotations

from torchmar.server.config.routes import Route
from torchmar.server.models.registry import Version

STARTED = "Processing worker updates..."


def registered(version: Version, *, synchronous: bool) -> str:
    """Return the message of a registration; `STARTED` if the call does not wait for workers."""
    workers = version.serving.min_workers
    message = f'Model "{version.name}" Version: {version.version} registered with {workers} initial workers'
    if not workers:
        return f"{message}. Use scale workers API to add workers for the model."
    return message if synchronous else STARTED


def scaled(name: str, version: str | None, workers: int, *, synchronous: bool) -> str:
    """Return the message of scaling, or `STARTED`; ``version`` is that of the request."""
    suffix = "" if version is None else f", version: {version}"
    return f"Workers scaled to {workers} for model: {name}{suffix}" if synchronous else STARTED


def made_default(name: str, version: str) -> str:
    """Return the message of a new default version."""
    return f'Default version successfully updated for model "{name}" to "{version}"'


def labelled(name: str, label: str, version: str) -> str:
    """Return the message for a label that was set to a version."""
    return f'Label {label} of model "{name}" stands for version {version}'


def label_removed(name: str, label: str) -> str:
    """Return the message of a removed label."""
    return f'Label {label} of model "{name}" removed'


def routed(path: str, route: Route) -> str:
    """Return the message for a route that was set to a model."""
    version = f", version {route.version}" if route.version is not None else ""
    return f'Route {path} leads to model "{route.model}"{version}'


def route_removed(path: str) -> str:
    """Return the message of a removed route."""
    return f"Route {path} removed"


def unregistered(name: str) -> str:
    """Return the message of an unregistered version."""
    return f'Model "{name}" unregistered'
