"""What the directory lists for a version's replicas becomes states of workers, events, and reasons for failures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from torchmar.cluster.directory import ReplicaState
from torchmar.cluster.link import ReplicaLink
from torchmar.cluster.replica_states import ReplicaStates
from torchmar.server.telemetry import logs
from torchmar.server.workers.pool_options import PoolOptions, WorkerInfo
from torchmar.worker.process.messages import MetricUpdate

OPTIONS = PoolOptions(name="m", version="1.0", handler="handler.py", folder="")
LOADING = ReplicaState(id="a", node="n", state="LOADING")
READY = replace(LOADING, state="READY", load_seconds=2.0, description={"inputs": []})
FAILED = replace(LOADING, failure="Traceback")


@dataclass
class Link:
    """The state of a connection; a real one needs a replica."""

    connected: bool = True
    ready: bool = True


@dataclass
class Observer:
    """Records the events of replicas, and how often requests may have to fail."""

    loaded: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    failures: int = 0
    links: dict[str, Link] = field(default_factory=dict)

    def on_batch(self, *_: Any) -> None: ...

    def on_load(self, name: str, version: str, worker: str, seconds: float) -> None:
        self.loaded.append(worker)

    def on_load_failed(self, name: str, version: str, worker: str, failure: str) -> None:
        self.failed.append(worker)

    def on_death(self, name: str, version: str, worker: str) -> None: ...

    def on_unregister(self, name: str, version: str) -> None: ...

    def on_metrics(self, name: str, version: str, updates: Sequence[MetricUpdate]) -> None: ...

    def on_failure(self) -> None:
        self.failures += 1

    def states(self) -> ReplicaStates:
        return ReplicaStates(OPTIONS, self, cast(dict[str, ReplicaLink], self.links), self.on_failure)


@pytest.fixture(autouse=True)
def captured(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs.SERVER, "propagate", True)
    caplog.set_level(logging.INFO, logs.SERVER.name)


def shown(states: ReplicaStates) -> list[str]:
    return [worker.state for worker in states.workers()]


def test_a_replica_is_ready_when_it_is_loaded_and_connected_to() -> None:
    observer = Observer()
    states = observer.states()
    states.update([LOADING])
    assert shown(states) == ["LOADING"]
    before = states.signature
    states.update([READY])
    assert shown(states) == ["LOADING"]
    observer.links["a"] = Link()
    assert shown(states) == ["READY"]
    assert states.signature != before
    observer.links["a"].ready = False
    assert shown(states) == ["UNLOADING"]
    assert observer.loaded == ["a"]
    assert states.description == READY.description


def test_a_failure_is_reported_once_and_stays_until_a_replica_has_loaded(caplog: pytest.LogCaptureFixture) -> None:
    observer = Observer()
    states = observer.states()
    states.update([FAILED])
    states.update([FAILED])
    assert (observer.failed, observer.failures, states.failure) == (["a"], 1, "Traceback")
    assert caplog.messages == ["m 1.0 worker a on node n does not run the model"]
    states.update([])
    assert states.failure == "Traceback"
    states.update([READY])
    assert states.failure == ""


def test_a_connected_replica_stays_while_the_directory_does_not_list_it() -> None:
    observer = Observer()
    states = observer.states()
    other = replace(READY, id="b")
    states.update([READY, other])
    observer.links["a"] = Link()
    states.update([])
    assert list(states.by_id) == ["a"]
    observer.links["a"].connected = False
    states.update([])
    assert len(states) == 0


def test_a_shortage_is_logged_when_it_begins_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    observer = Observer()
    states = observer.states()
    for reason in ("no room for 2", "no room for 1", "", ""):
        states.set_shortage(reason)
    assert caplog.messages == ["m 1.0: no room for 2", "m 1.0: there is room for its replicas"]
    assert observer.failures == 2
    states.set_shortage("no room")
    states.clear_shortage()
    assert states.shortage == ""


def test_a_failure_to_deploy_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    observer = Observer()
    states = observer.states()
    states.set_failure("why")
    states.set_failure("why")
    states.set_failure("")
    assert caplog.messages == ["m 1.0: why"]
    assert (states.failure, observer.failures) == ("why", 2)
    states.clear_failure()
    assert states.failure == ""


def test_workers_of_stages_are_those_of_all_replicas() -> None:
    worker = WorkerInfo(id="1", state="READY", pid=1, started=0.0, gpu=None, memory=0)
    states = Observer().states()
    states.update(
        [replace(READY, stages={"preprocess": [worker]}), replace(READY, id="b", stages={"preprocess": [worker]})]
    )
    assert states.stage_workers() == {"preprocess": [worker, worker]}
