"""The changes between two readings of another server, as events of the console; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torchmar.engines.state import VersionState
from torchmar.management import WorkerState
from torchmar.remote_console.reader import Model
from torchmar.server.telemetry.events import Kind


class Change(NamedTuple):
    """An event; see `torchmar.server.telemetry.events.Event`."""

    kind: Kind
    text: str
    model: str
    version: str
    worker: str = ""


def changes(before: Mapping[str, Model], now: Mapping[str, Model]) -> Iterator[Change]:
    """Yield the events of all models between two readings; a change that was undone between them is not visible."""
    for name in sorted(before.keys() | now.keys()):
        yield from _of_model(name, before.get(name), now.get(name))


def _of_model(name: str, before: Model | None, now: Model | None) -> Iterator[Change]:
    old = {state.model.version: state for state in before.versions} if before else {}
    new = {state.model.version: state for state in now.versions} if now else {}
    for version in old.keys() - new.keys():
        yield Change("unregistered", "unregistered", name, version)
    for version, state in new.items():
        if version in old:
            yield from _of_version(name, version, old[version], state)
        else:
            yield Change("registered", f"registered from {state.model.url}", name, version)
    if before and now and before.default != now.default and before.default in new:
        text = f"the default was switched from {before.default} to {now.default}"
        yield Change("default_switched", text, name, now.default)


def _of_version(name: str, version: str, before: VersionState, now: VersionState) -> Iterator[Change]:
    least, count = before.model.min_workers, now.model.min_workers
    if least != count:
        text = f"scaled from {least} to {count} {'worker' if count == 1 else 'workers'}"
        yield Change("scaled", text, name, version)
    old, new = _running(before), _running(now)
    for pid, worker in new.items():
        if pid not in old:
            yield Change("worker_started", "loaded the model", name, version, worker.id)
    if ended_workers := [old[pid] for pid in old.keys() - new.keys()]:
        # A worker that was removed to reduce the number of workers has not died.
        died = len(ended_workers) - max(0, least - count)
        for worker in ended_workers[: max(0, died)]:
            yield Change("worker_died", "ended while it served, and is started again", name, version, worker.id)
    if now.failure and now.failure.traceback and now.failure != before.failure:
        yield Change("load_failed", now.failure.reason, name, version)


def _running(state: VersionState) -> dict[int, WorkerState]:
    return {worker.pid: worker for worker in state.model.workers if worker.status == "READY" and worker.pid > 0}
