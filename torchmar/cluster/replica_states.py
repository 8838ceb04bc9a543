"""The state of a version's replicas: their entries in the directory, and the reason why there are too few."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from torchmar.cluster.directory import ReplicaState
from torchmar.cluster.link import ReplicaLink
from torchmar.server.telemetry import logs
from torchmar.server.workers.pool_options import PoolObserver, PoolOptions, State, WorkerInfo
from torchmar.server.workers.worker_log import WorkerLog
from torchmar.worker.process.messages import ModelDescription


class ReplicaStates:
    """The replicas that have announced themselves, and the last failure of a replica.

    Args:
        options: configuration of the version.
        observer: callbacks for replicas that have loaded the model, or failed to load it.
        links: connections to replicas, by Ray Serve's names of the replicas.
        on_failure: callback for each new reason why there are too few replicas.

    Attributes:
        by_id: replicas by Ray Serve's names.
        description: description of the handler's tensors; empty until a replica has loaded it.
    """

    def __init__(
        self,
        options: PoolOptions,
        observer: PoolObserver,
        links: Mapping[str, ReplicaLink],
        on_failure: Callable[[], None],
    ) -> None:
        self.by_id: dict[str, ReplicaState] = {}
        self.description: ModelDescription = {}
        self._options, self._observer, self._links, self._on_failure = options, observer, links, on_failure
        self._failure = ""  # failure of a replica, or of its deployment; empty after a replica has loaded
        self._shortage = ""  # reason why nodes have no room for a replica

    def __len__(self) -> int:
        return len(self.by_id)

    @property
    def failure(self) -> str:
        """The traceback of the last failed replica, or the reason why none can start; empty after one has loaded."""
        return self._failure

    @property
    def shortage(self) -> str:
        """The reason why nodes have no room for a replica; empty: they have room."""
        return self._shortage

    @property
    def signature(self) -> tuple[object, ...]:
        """A value that changes with the state of each replica."""
        return tuple((replica.id, self._state_of(replica), replica.started) for replica in self.by_id.values())

    def workers(self) -> list[WorkerInfo]:
        """Return the state of each replica."""
        return [
            WorkerInfo(
                id=replica.id,
                state=self._state_of(replica),
                pid=replica.pid,
                started=replica.started,
                gpu=None if replica.device == "cpu" else 0,
                memory=replica.memory,
                node=replica.node,
                device=replica.device,
                failure=replica.failure,
            )
            for replica in self.by_id.values()
        ]

    def stage_workers(self) -> dict[str, list[WorkerInfo]]:
        """Return the state of each worker of the other stages, of all replicas, by stage."""
        stages: dict[str, list[WorkerInfo]] = {}
        for replica in self.by_id.values():
            for stage, workers in replica.stages.items():
                stages.setdefault(stage, []).extend(workers)
        return stages

    def _state_of(self, replica: ReplicaState) -> State:
        """Return the state of a replica; a loaded replica without a connection is still LOADING."""
        link = self._links.get(replica.id)
        if link and link.connected:
            return "READY" if link.ready else "UNLOADING"
        return "LOADING" if replica.state == "READY" else replica.state

    def update(self, replicas: Sequence[ReplicaState]) -> None:
        """Update the replicas from the directory; connected replicas are kept, even if it does not list them."""
        states = self.by_id
        connected = {key: state for key, state in states.items() if key in self._links and self._links[key].connected}
        self.by_id = {**connected, **{replica.id: replica for replica in replicas}}
        name, version = self._options.name, self._options.version
        for replica in replicas:
            before = states.get(replica.id)
            if replica.failure and (before is None or not before.failure):
                self._failure = replica.failure
                log = WorkerLog(replica.id, self._options)
                log.server(logging.WARNING, f"on node {replica.node} does not run the model")
                self._on_failure()
                self._observer.on_load_failed(name, version, replica.id, replica.failure)
            elif replica.state == "READY" and (before is None or before.state != "READY"):
                self._failure, self.description = "", replica.description
                self._observer.on_load(name, version, replica.id, replica.load_seconds)

    def set_failure(self, reason: str) -> None:
        """Record the reason why there are too few replicas."""
        if reason and reason != self._failure:
            self._log(logging.ERROR, reason)
        if reason:
            self._failure = reason
            self._on_failure()

    def clear_failure(self) -> None:
        """Record that a replica runs the model, or that it is deployed again."""
        self._failure = ""

    def set_shortage(self, reason: str) -> None:
        """Record the reason why nodes have no room for a replica; empty: they have room."""
        if bool(reason) != bool(self._shortage):  # not for each change of the numbers
            self._log(logging.ERROR, reason) if reason else self._log(logging.INFO, "there is room for its replicas")
        self._shortage = reason
        if reason:
            self._on_failure()

    def clear_shortage(self) -> None:
        """Forget the shortage of another number of replicas."""
        self._shortage = ""

    def _log(self, level: int, text: str) -> None:
        logs.log_version(level, self._options.name, self._options.version, text)
