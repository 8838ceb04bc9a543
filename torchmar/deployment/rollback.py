"""Set the previous version as the default, in one call to the server."""

from __future__ import annotations

from dataclasses import dataclass

from torchmar.deployment import versions
from torchmar.deployment.actual import LiveModel, read_model
from torchmar.errors import TorchmarError
from torchmar.management import ManagementClient


@dataclass(frozen=True)
class Rollback:
    """What was done: from which version to which, the workers of both, and how many were started afterwards."""

    model: str
    before: str
    after: str
    workers_before: int
    workers_after: int


def previous(model: LiveModel) -> str:
    """Return the newest registered version that is older than the default one and has workers that answer.

    Raises:
        TorchmarError: there is none.
    """
    now = versions.newest_first(model.default)
    older = [
        one.version
        for one in model.versions.values()
        if versions.newest_first(one.version) < now and one.ready and one.version != model.default
    ]
    if not older:
        others = ", ".join(f"{one.version} ({one.ready} workers)" for one in model.versions.values())
        raise TorchmarError(
            f"{model.name} has no version before {model.default} that answers; registered: {others}",
            hint="--to names any other; keep: in deployment.yaml says how many stay for this",
        )
    return max(older, key=versions.newest_first)


def rollback(client: ManagementClient, name: str, to: str | None = None) -> Rollback:
    """Make the version before the default again; its workers are up, so that this takes one call.

    Raises:
        NotFound: the server has no such model.
        TorchmarError: there is no version to go back to, or it has no workers.
    """
    model = read_model(client, name)
    target = to or previous(model)
    if target not in model.versions:
        raise TorchmarError(f"{name} has no version {target}; registered: {', '.join(model.versions)}")
    if target == model.default:
        raise TorchmarError(f"{name} {target} is the default already")
    there = model.versions[target]
    if not there.ready:
        raise TorchmarError(
            f"{name} {target} has no workers that answer", hint=f"torchmar scale {name} 1 --version {target}"
        )
    client.set_default(name, target)
    return Rollback(name, model.default, target, len(model.versions[model.default].workers), len(there.workers))


def restore_workers(client: ManagementClient, done: Rollback) -> None:
    """Start as many workers as the version before had, where fewer were kept; the model answers meanwhile."""
    if done.workers_after < done.workers_before:
        client.scale(done.model, done.after, min_worker=done.workers_before)
