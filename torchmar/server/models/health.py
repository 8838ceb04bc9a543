"""The health of the server, as TorchServe computes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torchmar.server.models.registry import Registry
from torchmar.server.workers.pool import Pool

Health = Literal["Healthy", "Partial Healthy", "Unhealthy"]


def health(registry: Registry) -> Health:
    """Return TorchServe's word for how a server is.

    It is ``Unhealthy`` until every model that the configuration names is registered and its workers answer, while one
    of them could not be registered, and when no worker of some model's default version answers since they do not
    load; ``Partial Healthy`` while that is so of a few workers, or of another version. Workers that come up later, be
    it for the first time or again, are no fault: requests wait for them.
    """
    if (
        registry.startup.loading
        or registry.startup.failures
        or any(_failing(pool) and not pool.ready for pool in _defaults(registry))
    ):
        return "Unhealthy"
    every = (one.pool for model in registry.models.values() for one in model.versions.values())
    return "Partial Healthy" if any(map(_failing, every)) else "Healthy"


def ready(registry: Registry) -> bool:
    """Tell whether the default version of every model that is to have workers has one that answers.

    Models that the configuration names are to have them.
    """
    startup = registry.startup
    return (
        not startup.loading
        and not startup.failures
        and all(pool.ready for pool in _defaults(registry) if pool.min_workers)
    )


def _defaults(registry: Registry) -> Iterator[Pool]:
    return (model.versions[model.default].pool for model in registry.models.values())


def _failing(pool: Pool) -> bool:
    return bool(pool.failure) and pool.ready < pool.min_workers
