"""The actual state of a server: all versions of all models, their defaults, and routes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from torchmar.connection import Endpoint
from torchmar.errors import NotFoundError, ServerError
from torchmar.management import ManagementClient, ModelVersion

_THREADS = 4  # more threads do not make the server faster


class LiveRoute(NamedTuple):
    """The model of a route; ``version`` None: its default version."""

    model: str
    version: str | None = None

    def __str__(self) -> str:
        return self.model if self.version is None else f"{self.model} {self.version}"


@dataclass(frozen=True)
class LiveModel:
    """A registered model: its default version, and all versions, by name."""

    name: str
    default: str
    versions: Mapping[str, ModelVersion]


def read(server: Endpoint) -> dict[str, LiveModel]:
    """Return every model of a server by name; the list of models is read first, then several descriptions at a time.

    Raises:
        ConnectError, ServerError: for the reasons of the management client.
    """
    with ManagementClient(server) as client:
        default_urls = {model.name: model.url for model in client.models()}
    clients: list[ManagementClient] = []
    local = threading.local()

    def describe(name: str) -> Sequence[ModelVersion]:
        if not hasattr(local, "client"):
            local.client = ManagementClient(server)
            clients.append(local.client)
        with contextlib.suppress(NotFoundError):  # removed in the meantime
            return _describe(local.client, name, default_urls[name])
        return ()

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            by_model = dict(zip(default_urls, pool.map(describe, default_urls), strict=True))
    finally:
        for client in clients:
            client.close()
    return {
        name: LiveModel(name, versions[0].version, _by_name(sorted(versions, key=lambda version: version.version)))
        for name, versions in by_model.items()
        if versions
    }


def read_routes(server: Endpoint) -> dict[str, LiveRoute] | None:
    """Return the routes of a server by path; None: it has no routes, as TorchServe.

    Raises:
        ConnectError, ServerError: for the reasons of the management client.
    """
    with ManagementClient(server) as client:
        try:
            return {path: LiveRoute(*route) for path, route in client.routes().items()}
        except ServerError as error:
            if error.status in (404, 405):
                return None
            raise


def read_model(client: ManagementClient, name: str) -> LiveModel:
    """Return one model of a server. Raises NotFoundError."""
    default = client.describe(name)[0].version
    return LiveModel(name, default, _by_name(client.describe(name, "all")))


def _describe(client: ManagementClient, name: str, default_url: str) -> list[ModelVersion]:
    """Return the versions of a model, its default one first."""
    versions = client.describe(name, "all")
    defaults = [version for version in versions if version.url == default_url]
    # The list of models has the archive of the default version. If several versions share it, another call is needed.
    default = defaults[0].version if len(defaults) == 1 else client.describe(name)[0].version
    return sorted(versions, key=lambda version: version.version != default)


def _by_name(versions: Sequence[ModelVersion]) -> dict[str, ModelVersion]:
    return {version.version: version for version in versions}
