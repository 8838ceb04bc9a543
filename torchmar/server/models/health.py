"""The health of the server, as TorchServe computes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torchmar.server.models.registry import Registry
from torchmar.server.workers.pools import VersionPool

Health = Literal["Healthy", "Partial Healthy", "Unhealthy"]


def health(registry: Registry) -> Health:
    """Return TorchServe's health status of a server.

    It is ``Unhealthy`` until every model of the configuration is registered and its workers are ready, while one of
    these models could not be registered, while all workers of some model's default version fail to load, and when the
    server is about to end. It is ``Partial Healthy`` while some of these workers fail, or workers of another version.
    Workers that start, for the first time or again, do not count as failing: requests wait for them. A server that can
    neither start nor replace workers is at most ``Partial Healthy``.
    """
    if (
        registry.withdrawn
        or registry.startup.loading
        or registry.startup.failures
        or any(_failing(pool) and not pool.ready for pool in _defaults(registry))
    ):
        return "Unhealthy"
    pools = (version.pool for model in registry.models.values() for version in model.versions.values())
    return "Partial Healthy" if registry.problem or any(map(_failing, pools)) else "Healthy"


def ready(registry: Registry) -> bool:
    """Return whether the default version of every model with workers has a ready worker.

    That includes the models of the configuration. A server that is about to end is not ready.
    """
    startup = registry.startup
    return (
        not registry.withdrawn
        and not startup.loading
        and not startup.failures
        and all(pool.ready for pool in _defaults(registry) if pool.min_workers)
    )


def _defaults(registry: Registry) -> Iterator[VersionPool]:
    return (model.versions[model.default].pool for model in registry.models.values())


def _failing(pool: VersionPool) -> bool:
    return bool(pool.failure) and pool.ready < pool.min_workers
