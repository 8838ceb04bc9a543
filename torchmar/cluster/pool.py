"""The pool of a version whose workers are replicas of Ray Serve; it sets and restores their number."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Container, Mapping
from pathlib import Path

from torchmar.cluster import capacity
from torchmar.cluster.application import Application
from torchmar.cluster.capacity import Resources
from torchmar.cluster.directory import ANNOUNCE_SECONDS, ReplicaState
from torchmar.cluster.dispatcher import Dispatcher
from torchmar.cluster.link import ReplicaLink
from torchmar.cluster.node_contents import NodeContent, PackedContent
from torchmar.cluster.replica_states import ReplicaStates
from torchmar.cluster.session import Session
from torchmar.errors import TorchmarError
from torchmar.server.api_error import ApiError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config.settings import Settings
from torchmar.server.telemetry import logs
from torchmar.server.workers import unavailable
from torchmar.server.workers.jobs import Job
from torchmar.server.workers.pool_options import PoolObserver, PoolOptions, WorkerInfo
from torchmar.worker.process.messages import ModelDescription

_MISSING_SECONDS = 30.0  # limit of the time until a replica announces itself, when it has its resources


class ClusterPool:
    """A version's application of Ray Serve, its replicas, and their requests.

    Args:
        session: connection to the cluster.
        options: configuration of the version.
        observer: callbacks for events.
        packages: the folder with packages of the archive; None: it has none.
        own_venv: whether its workers run in a separate environment.
        settings: the server's configuration.
        folder: folder for the packed content.
        key: key of a pool whose replicas another front has deployed; empty: this front deploys them.

    Attributes:
        key: key of its replicas in the directory.
        owned: whether this front deploys, scales and deletes the replicas.
        min_workers: wanted number of replicas.
        max_workers: largest permitted number of replicas.
    """

    def __init__(
        self,
        session: Session,
        options: PoolOptions,
        observer: PoolObserver,
        packages: Path | None,
        own_venv: bool,
        settings: Settings,
        folder: Path,
        key: str = "",
    ) -> None:
        self.options = options
        self.min_workers = self.max_workers = 0
        self.key = key or f"{options.name} {options.version} {secrets.token_hex(4)}"
        self.owned = not key
        self._session = session
        self._application = Application(session, options, packages, own_venv, settings, folder, self.key)
        self._dispatcher = Dispatcher(options, observer, session.node_id, self)
        self._states = ReplicaStates(options, observer, self._dispatcher.links, self._dispatcher.fail_unless_ready)
        self._missing_since = 0.0  # time by `time.monotonic`; 0: no replicas are missing
        self._closed = False
        self._changed = asyncio.Event()
        self._deploying = asyncio.Lock()  # while the application is changed
        self._tasks = BackgroundTasks()

    @property
    def ready(self) -> int:
        """The number of replicas that accept requests of this front."""
        return self._dispatcher.ready

    @property
    def failure(self) -> str:
        """The reason for missing replicas: the traceback of the last failure, missing resources, or a silent head."""
        missing = self.ready < self.min_workers
        return self._states.failure or self._states.shortage or (self._session.head.problem if missing else "")

    @property
    def pending(self) -> int:
        """The number of requests that wait for a worker: those beyond one batch for each ready replica."""
        return self._dispatcher.pending

    @property
    def busy(self) -> bool:
        """Whether any request waits or is run."""
        return self._dispatcher.busy

    @property
    def description(self) -> ModelDescription:
        """The tensors of the handler; empty until a replica has loaded it."""
        return self._states.description

    @property
    def signature(self) -> tuple[object, ...]:
        """A value that changes with the number of replicas and with the state of each."""
        return self.min_workers, self.max_workers, *self._states.signature

    def workers(self) -> list[WorkerInfo]:
        """Return the state of each replica."""
        return self._states.workers()

    def stage_workers(self) -> dict[str, list[WorkerInfo]]:
        """Return the state of each worker of the other stages, of all replicas, by stage."""
        return self._states.stage_workers()

    @property
    def replicas(self) -> list[ReplicaState]:
        """The replicas that have announced themselves."""
        return list(self._states.by_id.values())

    # Requests.

    def submit(self, job: Job) -> None:
        """Run a request; its ``on_reply`` is called with the reply.

        Raises:
            ApiError: for the reasons of `admit`.
        """
        self.admit(job.batch_kind, job.deadline)
        self.enqueue(job)

    def admit(self, kind: str, deadline: float | None) -> None:
        """Check whether a request that arrives now can be run; see `torchmar.server.workers.pool.Pool.admit`.

        Raises:
            ApiError: 503; there are no replicas, too many requests wait, or the deadline cannot be met.
        """
        if not self.min_workers or self._closed:
            raise unavailable.no_worker(self.options)
        self._dispatcher.admit(kind, deadline)

    def enqueue(self, job: Job) -> None:
        """Run a request that was admitted."""
        self._dispatcher.enqueue(job)

    def on_link(self, link: ReplicaLink) -> None:
        """Of `torchmar.cluster.dispatcher.DispatcherOwner`."""
        if link.ready:
            self._states.clear_failure()
        elif link.problem and not self.ready:
            self._states.set_failure(f"a replica cannot be reached at {link.problem}")
        self._changed.set()

    def on_idle(self) -> None:
        """Of `torchmar.cluster.dispatcher.DispatcherOwner`."""
        self._changed.set()

    # Replicas.

    async def scale(self, min_workers: int, max_workers: int) -> bool:
        """Set the number of replicas; return whether at least ``min_workers`` of them have loaded the model.

        The result is False as soon as a replica has failed to load, or no node has room for it now; ``failure`` has the
        reason.

        Raises:
            ApiError: 507, the cluster never has room for this number; the existing replicas stay.
        """
        before = self.min_workers, self.max_workers
        self.min_workers, self.max_workers = min_workers, max(min_workers, max_workers)
        if not self.owned:
            self._application.deployed = min_workers > 0
            return True
        nodes = await asyncio.to_thread(self._session.nodes) if min_workers else {}
        if problem := capacity.problem(self._application.needs, min_workers, nodes) if min_workers else "":
            if self.ready:
                self.min_workers, self.max_workers = before
            else:
                self._states.set_shortage(problem)
            raise ApiError(507, "InternalServerException", f"{self.options.name} {self.options.version}: {problem}")
        self._states.clear_shortage()
        if not min_workers:
            self._dispatcher.fail_waiting()
            await self._delete()
            return True
        self._states.clear_failure()
        async with self._deploying:
            try:
                full = await self._application.wait_for_room(min_workers - len(self._states))
                content = await self._application.pack()
                # Another call may have changed the number of replicas meanwhile.
                await self._application.deploy(content, self.min_workers, self.max_workers)
                self._missing_since = 0.0
            except Exception as error:  # Ray raises many kinds, also when its own processes end
                self._states.set_failure(error.message if isinstance(error, TorchmarError) else repr(error))
                return False
        if full:
            self._states.set_shortage(full)  # Ray Serve starts them when there is room
            return False
        await self._wait_for(
            lambda: (
                self._closed
                or not self.min_workers
                or self.failure
                or (self.ready >= self.min_workers and len(self._states) <= self.max_workers)
            )
        )
        return not self.failure and self.ready >= self.min_workers > 0

    def update(self, replicas: list[ReplicaState]) -> None:
        """Update the replicas from the directory; connected replicas are kept, even if it does not list them."""
        self._states.update(replicas)
        self._dispatcher.connect(self._states.by_id)
        self._changed.set()

    @property
    def missing(self) -> int:
        """The number of replicas that have not announced themselves."""
        return max(0, self.min_workers - len(self._states))

    @property
    def deployed(self) -> bool:
        """Whether the application should exist in Ray Serve."""
        return self._application.deployed and not self._deploying.locked()

    def check(self, nodes: Mapping[str, Resources], applications: Mapping[str, str]) -> None:
        """Record why replicas are missing; repeat a deployment that failed.

        Args:
            nodes: free resources of the nodes, by their names.
            applications: applications of Ray Serve, each with the reason why its replicas cannot be started; empty:
                they can be.
        """
        states, application = self._states, self._application
        missing = self.missing
        if not missing:
            self._missing_since = 0.0
            states.set_shortage("")
            return
        self._missing_since = self._missing_since or time.monotonic()
        if (message := applications.get(application.name)) and not states.failure and application.deployed:
            states.set_failure(message.strip())
        if time.monotonic() - self._missing_since < _MISSING_SECONDS:
            return
        states.set_shortage(capacity.problem(application.needs, missing, nodes, free=True))
        if self.owned and not (application.deployed or states.shortage or self._deploying.locked() or self._closed):
            self._tasks.start(self._deploy_again())

    def restore(self, applications: Container[str]) -> None:
        """Deploy the application again if another program has deleted it.

        Args:
            applications: applications of Ray Serve, listed while this pool was `deployed`.
        """
        if self.owned and self.missing and self.deployed and self._application.name not in applications:
            text = "another program has deleted its application of Ray Serve; it is deployed again"
            logs.log_version(logging.WARNING, self.options.name, self.options.version, text)
            self._tasks.start(self._deploy_again())

    async def _deploy_again(self) -> None:
        with contextlib.suppress(ApiError):  # the error is recorded
            await self.scale(self.min_workers, self.max_workers)

    async def described(self) -> None:
        """Wait until a handler has loaded and described its tensors, or no replica will load."""
        await self._wait_for(lambda: self.description or self.failure or self._closed or not self.min_workers)

    async def drain(self, seconds: float) -> bool:
        """Wait until no request waits or is run, at most ``seconds``; return whether this is the case."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wait_for(lambda: not self.busy), seconds)
        return not self.busy

    async def close(self) -> None:
        """Delete the application; requests that wait or are run get a 503."""
        self._closed = True
        self.min_workers = 0
        self._dispatcher.close()
        self._changed.set()
        await self._delete()

    async def _delete(self) -> None:
        async with self._deploying:
            await self._application.delete(owned=self.owned)

    @property
    def packed_file(self) -> Path | None:
        """The file of the packed content; None: it has not been needed yet."""
        return self._application.packed_file

    def attach(self, packed: PackedContent, content: NodeContent) -> None:
        """Use this front's copy of a content from another front, packed and extracted."""
        self._application.attach(packed, content)

    async def pack(self) -> PackedContent:
        """Return the packed content; it is packed in the first call."""
        return await self._application.pack()

    async def _wait_for(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), ANNOUNCE_SECONDS)
