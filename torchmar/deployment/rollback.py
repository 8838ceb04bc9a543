"""Set the previous version as the default, in one call to the server."""

from __future__ import annotations

from dataclasses import dataclass

from torchmar.deployment import versions
from torchmar.deployment.actions import workers
from torchmar.deployment.actual import LiveModel, read_model
from torchmar.errors import TorchmarError
from torchmar.management import ManagementClient


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """A completed rollback: the default version before and after it, and the number of workers of each."""

    model: str
    before: str
    after: str
    workers_before: int
    workers_after: int


def previous(model: LiveModel) -> str:
    """Return the newest registered version that is older than the default one and has workers that answer.

    Raises:
        TorchmarError: there is no such version.
    """
    now = versions.newest_first(model.default)
    older = [
        version.version
        for version in model.versions.values()
        if versions.newest_first(version.version) < now and version.ready and version.version != model.default
    ]
    if not older:
        others = ", ".join(f"{version.version} ({workers(version.ready)})" for version in model.versions.values())
        raise TorchmarError(
            f"{model.name} has no version before {model.default} that answers; registered: {others}",
            hint="--to names any other; keep: in deployment.yaml is the number of versions that stay for a rollback",
        )
    return max(older, key=versions.newest_first)


def rollback(client: ManagementClient, name: str, to: str | None = None) -> Rollback:
    """Make the previous version the default again. This takes a single call, because its workers are running.

    Raises:
        NotFoundError: the server has no such model.
        TorchmarError: the version does not exist, or has no workers.
    """
    model = read_model(client, name)
    target = to or previous(model)
    if target not in model.versions:
        raise TorchmarError(f"{name} has no version {target}; registered: {', '.join(model.versions)}")
    if target == model.default:
        raise TorchmarError(f"{name} {target} is the default already")
    registered = model.versions[target]
    if not registered.ready:
        raise TorchmarError(
            f"{name} {target} has no workers that answer", hint=f"torchmar scale {name} 1 --version {target}"
        )
    client.set_default(name, target)
    return Rollback(
        model=name,
        before=model.default,
        after=target,
        workers_before=len(model.versions[model.default].workers),
        workers_after=len(registered.workers),
    )


def restore_workers(client: ManagementClient, outcome: Rollback) -> None:
    """Start as many workers as the previous version had, if fewer were kept; the model answers in the meantime."""
    if outcome.workers_after < outcome.workers_before:
        client.scale(outcome.model, outcome.after, min_worker=outcome.workers_before)
