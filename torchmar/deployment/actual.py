"""The actual state of a server: all versions of all models, and their defaults."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torchmar.connection import Endpoint
from torchmar.errors import NotFoundError
from torchmar.management import ManagementClient, ModelVersion

_THREADS = 4  # with more the server is not faster


@dataclass(frozen=True)
class LiveModel:
    """A model on the server: the version that answers requests without one, and all versions by name."""

    name: str
    default: str
    versions: Mapping[str, ModelVersion]


def read(server: Endpoint) -> dict[str, LiveModel]:
    """Return every model of a server by name: one list, then one question for each model, several at a time.

    Raises:
        ConnectError, ServerError: as the management client does.
    """
    with ManagementClient(server) as client:
        default_urls = {model.name: model.url for model in client.models()}
    clients: list[ManagementClient] = []
    mine = threading.local()

    def described(name: str) -> Sequence[ModelVersion]:
        if not hasattr(mine, "client"):
            mine.client = ManagementClient(server)
            clients.append(mine.client)
        with contextlib.suppress(NotFoundError):  # removed in the meantime
            return _described(mine.client, name, default_urls[name])
        return ()

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            found = dict(zip(default_urls, pool.map(described, default_urls), strict=True))
    finally:
        for client in clients:
            client.close()
    return {
        name: LiveModel(name, versions[0].version, {one.version: one for one in sorted(versions, key=_by_version)})
        for name, versions in found.items()
        if versions
    }


def read_model(client: ManagementClient, name: str) -> LiveModel:
    """Return one model of a server. Raises NotFoundError."""
    default = client.describe(name)[0].version
    return LiveModel(name, default, {one.version: one for one in client.describe(name, "all")})


def _described(client: ManagementClient, name: str, default_url: str) -> list[ModelVersion]:
    """Return the versions of a model, its default one first."""
    versions = client.describe(name, "all")
    defaults = [one for one in versions if one.url == default_url]
    # The list has the archive of the default version; only if two versions share one are more calls needed.
    default = defaults[0].version if len(defaults) == 1 else client.describe(name)[0].version
    return sorted(versions, key=lambda one: one.version != default)


def _by_version(version: ModelVersion) -> str:
    return version.version
