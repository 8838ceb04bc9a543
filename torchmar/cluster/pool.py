"""The pool of a version whose workers are replicas of Ray Serve."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torchmar
from torchmar.cluster import capacity
from torchmar.cluster.balancer import Balancer
from torchmar.cluster.capacity import Resources
from torchmar.cluster.directory import ANNOUNCE_SECONDS, ReplicaState
from torchmar.cluster.link import ReplicaLink
from torchmar.cluster.node_contents import NodeContent, PackedContent, pack
from torchmar.cluster.replica import NodeVenv, ReplicaSpec
from torchmar.cluster.session import Scale, Session
from torchmar.errors import TorchmarError
from torchmar.server.api_error import ApiError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config.settings import Settings
from torchmar.server.telemetry import logs
from torchmar.server.workers import unavailable
from torchmar.server.workers.batch_times import BatchTimes
from torchmar.server.workers.job_queue import JobQueue
from torchmar.server.workers.jobs import Job
from torchmar.server.workers.pool_options import PoolObserver, PoolOptions, State, WorkerInfo
from torchmar.server.workers.worker_log import WorkerLog
from torchmar.server_config import Replica
from torchmar.worker.process.messages import ModelDescription

_ROOM_SECONDS = 10.0  # that resources of replicas that have just ended may take to be free
_ROOM_PAUSE_SECONDS = 0.5
_MISSING_SECONDS = 30.0  # that a replica may take to announce itself; it has its resources already
_TRIES = 5  # to run a request whose replica ends
_BATCHES = 2  # that a replica has of a front at once: one runs, the next one fills
_CHECK_SECONDS = 0.1  # between checks of deadlines
_UNLIMITED = 1 << 30  # requests that a replica accepts: its fronts have the limit


class ClusterPool:
    """A version's application of Ray Serve, and the requests that its replicas run.

    Args:
        session: the cluster.
        options: the configuration.
        observer: callbacks for events.
        packages: the folder with packages of the archive; None: it has none.
        own_venv: whether its workers run in an environment of its own.
        settings: the server's configuration.
        folder: for the packed content.
        key: of a pool whose replicas another front has deployed; empty: it is this front's own.

    Attributes:
        key: of its replicas in the directory.
        owned: whether this front deploys, scales and deletes the replicas.
        min_workers: how many replicas there should be.
        max_workers: how many there may be.
        description: of the handler's tensors.
        batch_times: of its replicas, measured since a request had a deadline; None: none had.
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
        self._failure = ""  # of a replica; empty since one has loaded
        self._shortage = ""  # why nodes have no room for a replica
        self._missing_since = 0.0  # by `time.monotonic`; 0: there are as many replicas as there should be
        self.description: ModelDescription = {}
        self.batch_times: BatchTimes | None = None
        self.key = key or f"{options.name} {options.version} {secrets.token_hex(4)}"
        self.owned = not key
        self._application = session.application_name(options.name, options.version)
        self._session, self._observer, self._settings = session, observer, settings
        self._packages, self._folder = packages, folder
        self._needs = needs(options, settings)
        self._venv = None
        if own_venv:
            self._venv = NodeVenv(str(settings.venv_folder or ""), settings.install_py_dep_per_model)
        self._content: PackedContent | None = None
        self._node_content: NodeContent | None = None
        self._packing = asyncio.Lock()
        self._replicas: dict[str, ReplicaState] = {}
        self._links: dict[str, ReplicaLink] = {}
        self._balancer: Balancer[ReplicaLink] = Balancer()
        self._queue = JobQueue()
        self._losses: WeakKeyDictionary[Job, int] = WeakKeyDictionary()
        self._scheduled = self._deployed = self._closed = False
        self._changed = asyncio.Event()
        self._deploying = asyncio.Lock()
        self._tasks = BackgroundTasks()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_CHECK_SECONDS, self._look_after)

    @property
    def ready(self) -> int:
        """The number of replicas that accept requests of this front."""
        return self._balancer.ready

    @property
    def failure(self) -> str:
        """Why there are too few replicas: the traceback of the last that failed, what nodes lack, or a silent head."""
        missing = self.ready < self.min_workers
        return self._failure or self._shortage or (self._session.head.problem if missing else "")

    @property
    def _running(self) -> int:
        """The number of requests that wait or are run."""
        return len(self._queue) + self._balancer.total

    @property
    def pending(self) -> int:
        """The number of requests that wait for a worker: those beyond a batch for each ready one."""
        return max(0, self._running - self.ready * self.options.batch_size)

    @property
    def busy(self) -> bool:
        """Whether any request waits or is run."""
        return self._running > 0

    @property
    def signature(self) -> tuple[object, ...]:
        """A value that changes with the number of replicas and the state of each."""
        replicas = ((replica.id, self._state_of(replica), replica.started) for replica in self._replicas.values())
        return self.min_workers, self.max_workers, *replicas

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
            for replica in self._replicas.values()
        ]

    def _state_of(self, replica: ReplicaState) -> State:
        """Return the state of a replica; one that is loaded and not connected to is still LOADING."""
        link = self._links.get(replica.id)
        if link and link.connected:
            return "READY" if link.ready else "UNLOADING"
        return "LOADING" if replica.state == "READY" else replica.state

    @property
    def replicas(self) -> list[ReplicaState]:
        """The replicas that have announced themselves."""
        return list(self._replicas.values())

    def stage_workers(self) -> dict[str, list[WorkerInfo]]:
        """Return the state of each worker of the other stages, of all replicas, by stage."""
        stages: dict[str, list[WorkerInfo]] = {}
        for replica in self._replicas.values():
            for stage, workers in replica.stages.items():
                stages.setdefault(stage, []).extend(workers)
        return stages

    # Requests.

    def submit(self, job: Job) -> None:
        """Run a request; its ``on_reply`` is called with the reply.

        Raises:
            ApiError: as `admit`.
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
        if self.failure and not self.ready:
            raise unavailable.does_not_load(self.options)
        if (pending := self.pending) >= self.options.queue_size:
            raise unavailable.queue_full(self.options, pending, loading=not self.ready)
        if self.options.job_tickets and self._running >= self.ready * self.options.batch_size:
            raise unavailable.no_ticket(self.options)
        if deadline is not None:
            unavailable.check_deadline(self.options, deadline, self._seconds_until_reply(kind), pending)

    def enqueue(self, job: Job) -> None:
        """Run a request that was admitted."""
        self._queue.append(job)
        self._schedule()

    def _seconds_until_reply(self, kind: str) -> float:
        """Return in how many seconds a request that arrives now will nearly always have its reply.

        0 if it need not wait, and while there are no measurements, as in `torchmar.server.workers.pool.Pool`. Requests
        of other fronts are part of the measured times; each replica checks deadlines again, with all that it has.
        """
        times = self.batch_times
        if times is None:
            times = self.batch_times = BatchTimes()
        link = self._balancer.choose()
        if link and not link.jobs and not self._queue:
            return 0.0
        now, size = time.monotonic(), self.options.batch_size
        busy: dict[object, float] = {}
        waiting = list(self._queue)
        for link in self._links.values():
            if link.ready:
                jobs = list(link.jobs.values())
                waiting += jobs[size:]
                expected = times.mean(jobs[0].batch_kind, len(jobs[:size])) if jobs else 0.0
                busy[link] = max(0.0, expected - (now - link.batch_started))
        return times.seconds_until_reply(kind, waiting, busy, size) if busy else 0.0

    def _schedule(self) -> None:
        """Dispatch at the end of this turn of the loop: requests that arrive together share a frame."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._queue and (link := self._balancer.choose()):
            if batch := self._queue.take_batch(min(link.room, self.options.batch_size), self.batch_times):
                link.send(batch)
                self._balancer.place(link)
        if not self.busy:
            self._changed.set()

    def _look_after(self) -> None:
        """Reply to expired requests, and look after the connections."""
        self._queue.remove_expired()
        if self._queue and self.failure:
            self._fail_queue()
        now, demand = time.monotonic(), self._running
        for link in list(self._links.values()):
            link.check(now, demand)
        self._timer = self._loop.call_later(_CHECK_SECONDS, self._look_after)

    def on_state(self, link: ReplicaLink) -> None:
        """Of `LinkOwner`."""
        self._balancer.place(link)
        if link.ready:
            self._failure = ""
        elif link.problem and not self.ready:
            self._fail(f"a replica cannot be reached at {link.problem}")
        self._schedule()
        self._changed.set()

    def on_replies(self, link: ReplicaLink, batches: Sequence[Any], updates: Sequence[Any]) -> None:
        """Of `LinkOwner`."""
        self._balancer.place(link)
        self._dispatch()
        name, version = self.options.name, self.options.version
        for size, queue_seconds, handler_seconds in batches:
            self._observer.on_batch(name, version, size, queue_seconds, handler_seconds)
        if updates:
            self._observer.on_metrics(name, version, updates)

    def on_lost(self, link: ReplicaLink, unanswered: Sequence[tuple[Job, bool]]) -> None:
        """Of `LinkOwner`."""
        self._balancer.place(link)
        repeated = []
        for job, streaming in unanswered:
            self._losses[job] = losses = self._losses.get(job, 0) + 1
            if streaming or losses >= _TRIES:
                job.reply_error(ApiError(500, "InternalServerException", "Worker died."))  # TorchServe's text
            elif not job.cancelled:
                repeated.append(job)
        # Nearly always the replica has ended for another reason than a request, which ends only its worker.
        self._queue.put_back(repeated, isolated=False)
        if not link.draining:
            self._log(logging.WARNING, f"replica {link.id} has ended; {len(repeated)} requests are repeated")
            self._observer.on_death(self.options.name, self.options.version, link.id)
        self._schedule()
        self._changed.set()

    # Replicas.

    async def scale(self, min_workers: int, max_workers: int) -> bool:
        """Set the number of replicas; return whether there are as many as ``min_workers`` with the model.

        The result is False as soon as one has failed to load, or no node has room for it now; ``failure`` has the
        reason.

        Raises:
            ApiError: 507, the cluster never has room for as many; the replicas that there are stay.
        """
        session = self._session
        if not self.owned:
            self.min_workers, self.max_workers = min_workers, max(min_workers, max_workers)
            self._deployed = min_workers > 0
            return True
        before = self.min_workers, self.max_workers
        self.min_workers, self.max_workers = min_workers, max(min_workers, max_workers)
        nodes = await asyncio.to_thread(session.nodes) if min_workers else {}
        if problem := capacity.problem(self._needs, min_workers, nodes) if min_workers else "":
            if self.ready:
                self.min_workers, self.max_workers = before
            else:
                self._set_shortage(problem)
            raise ApiError(507, "InternalServerException", f"{self.options.name} {self.options.version}: {problem}")
        self._shortage = ""
        if not min_workers:
            self._queue.fail_all(unavailable.no_worker(self.options))
            await self._delete()
            return True
        self._failure = ""
        async with self._deploying:
            try:
                full = await self._wait_for_room(min_workers - len(self._replicas))
                await self._deploy()
                self._missing_since = 0.0
            except Exception as error:  # Ray has many, also of its own processes that end
                return self._fail(error.message if isinstance(error, TorchmarError) else repr(error))
        if full:
            self._set_shortage(full)  # Ray Serve starts them when there is room
            return False
        await self._wait_for(
            lambda: (
                self._closed
                or not self.min_workers
                or self.failure
                or (self.ready >= self.min_workers and len(self._replicas) <= self.max_workers)
            )
        )
        return not self.failure and self.ready >= self.min_workers > 0

    def update(self, replicas: list[ReplicaState]) -> None:
        """Take what the directory lists; replicas that are connected stay, also while it does not know them."""
        known = self._replicas
        connected = {key: state for key, state in known.items() if key in self._links and self._links[key].connected}
        self._replicas = {**connected, **{replica.id: replica for replica in replicas}}
        for replica in replicas:
            before = known.get(replica.id)
            if replica.failure and (before is None or not before.failure):
                self._log_failure(replica)
                self._observer.on_load_failed(self.options.name, self.options.version, replica.id, replica.failure)
            elif replica.state == "READY" and (before is None or before.state != "READY"):
                self._failure, self.description = "", replica.description
                self._observer.on_load(self.options.name, self.options.version, replica.id, replica.load_seconds)
            if replica.endpoint and replica.id not in self._links and not self._closed:
                limit = _BATCHES * self.options.batch_size
                node_id = self._session.node_id
                self._links[replica.id] = ReplicaLink(replica.id, replica.endpoint, node_id, limit, self)
        for gone in self._links.keys() - self._replicas.keys():
            link = self._links.pop(gone)
            link.close()
            self._balancer.remove(link)
        self._changed.set()

    @property
    def missing(self) -> int:
        """The number of replicas that have not announced themselves."""
        return max(0, self.min_workers - len(self._replicas))

    @property
    def deployed(self) -> bool:
        """Whether its application should be one of Ray Serve's."""
        return self._deployed and not self._deploying.locked()

    def check(self, nodes: Mapping[str, Resources], applications: Mapping[str, str]) -> None:
        """Record why replicas are missing; deploy again what could not be deployed.

        Args:
            nodes: what they have free, by their names.
            applications: of Ray Serve, each with why its replicas cannot be started; empty: they can.
        """
        missing = self.missing
        if not missing:
            self._missing_since = 0.0
            self._set_shortage("")
            return
        self._missing_since = self._missing_since or time.monotonic()
        if (message := applications.get(self._application)) and not self._failure and self._deployed:
            self._fail(message.strip())
        if time.monotonic() - self._missing_since < _MISSING_SECONDS:
            return
        self._set_shortage(capacity.problem(self._needs, missing, nodes, free=True))
        if self.owned and not (self._deployed or self._shortage or self._deploying.locked() or self._closed):
            self._tasks.start(self._deploy_again())

    def restore(self, applications: Container[str]) -> None:
        """Deploy the application again if another program has deleted it.

        Args:
            applications: of Ray Serve, listed while this one was `deployed`.
        """
        if self.owned and self.missing and self.deployed and self._application not in applications:
            self._log(logging.WARNING, "another program has deleted its application of Ray Serve; it is deployed again")
            self._tasks.start(self._deploy_again())

    async def _deploy_again(self) -> None:
        with contextlib.suppress(ApiError):  # it is recorded
            await self.scale(self.min_workers, self.max_workers)

    async def described(self) -> None:
        """Wait until a handler has loaded and described its tensors, or no replica will load."""
        await self._wait_for(lambda: self.description or self.failure or self._closed or not self.min_workers)

    async def drain(self, seconds: float) -> bool:
        """Wait until no request waits or is run, at most ``seconds``; return whether that is so."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wait_for(lambda: not self.busy), seconds)
        return not self.busy

    async def close(self) -> None:
        """Delete the application; requests that wait or are run get a 503."""
        self._closed = True
        self.min_workers = 0
        self._timer.cancel()
        self._queue.fail_all(unavailable.no_worker(self.options))
        for link in self._links.values():
            for job in link.close():
                job.reply_error(unavailable.no_worker(self.options))
            self._balancer.remove(link)
        self._links.clear()
        self._changed.set()
        await self._delete()

    async def _wait_for_room(self, count: int) -> str:
        """Return why there is no room for so many more replicas now; empty: there is, perhaps after a few seconds."""
        deadline = time.monotonic() + _ROOM_SECONDS
        while True:
            nodes = await self._session.run(self._session.nodes, free=True)
            full = capacity.problem(self._needs, count, nodes, free=True) if count > 0 else ""
            if not full or time.monotonic() > deadline:
                return full
            await asyncio.sleep(_ROOM_PAUSE_SECONDS)

    @property
    def packed_file(self) -> Path | None:
        """The file of the packed content; None: it was not needed yet."""
        return Path(self._content.path) if self._content else None

    def attach(self, packed: PackedContent, content: NodeContent) -> None:
        """Take over this front's copy of a content that another front has packed, packed and extracted."""
        self._content, self._node_content = packed, content

    async def pack(self) -> PackedContent:
        """Return the packed content, which is packed if it is not yet."""
        async with self._packing:
            if self._content is None:
                target = self._folder / f"{secrets.token_hex(8)}.tar"
                self._content = await asyncio.to_thread(pack, Path(self.options.folder), self._packages, target)
                await self._session.add_content(self._content)
        return self._content

    async def _deploy(self) -> None:
        options, settings = self.options, self._settings
        content = await self.pack()
        spec = ReplicaSpec(
            pool=self.key,
            release=torchmar.__version__,
            options=replace(
                options,
                queue_size=_UNLIMITED,
                job_tickets=False,
                cores=max(1, round(self._needs.cpus)),
            ),
            content=content,
            gpu=bool(self._needs.gpus),
            variables=settings.worker_environment({}),
            hidden=settings.blacklist_env_vars.pattern if settings.blacklist_env_vars else "",
            venv=self._venv,
        )
        scale = Scale(
            least=self.min_workers,
            most=self.max_workers,
            needs=self._needs,
            batch_size=options.batch_size,
            drain_seconds=_BATCHES * options.response_timeout,
        )
        await self._session.run(self._session.deploy, self._application, spec, scale)
        self._deployed = True

    async def _delete(self) -> None:
        async with self._deploying:
            deployed, self._deployed = self._deployed, False
            if deployed and self.owned:
                await self._session.run(self._session.delete, self._application)
            if self._content:
                content, self._content = self._content, None
                await self._session.remove_content(content)
            if self._node_content:
                content_here, self._node_content = self._node_content, None
                await asyncio.to_thread(content_here.close)

    def _fail(self, reason: str) -> bool:
        """Record why there are too few replicas; return False."""
        if reason and reason != self._failure:
            self._log(logging.ERROR, reason)
        if reason:
            self._failure = reason
            self._fail_queue()
        return False

    def _set_shortage(self, reason: str) -> None:
        """Record why nodes have no room for a replica; empty: they have."""
        if bool(reason) != bool(self._shortage):  # not each time when the numbers change
            self._log(logging.ERROR, reason) if reason else self._log(logging.INFO, "there is room for its replicas")
        self._shortage = reason
        if reason:
            self._fail_queue()

    def _fail_queue(self) -> None:
        """Reply to requests that wait while no replica loads: the next one may fail, too."""
        if not self.ready:
            self._queue.fail_all(unavailable.does_not_load(self.options))

    def _log(self, level: int, text: str) -> None:
        name, version = self.options.name, self.options.version
        logs.SERVER.log(level, "%s %s: %s", name, version, text, extra={"model": name, "version": version})

    def _log_failure(self, replica: ReplicaState) -> None:
        self._failure = replica.failure
        WorkerLog(replica.id, self.options).server(logging.WARNING, f"on node {replica.node} does not run the model")
        self._fail_queue()

    async def _wait_for(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), ANNOUNCE_SECONDS)


def needs(options: PoolOptions, settings: Settings) -> Resources:
    """Return what a node keeps free for a replica: as its archive says, or else the configuration."""
    own = options.replica or Replica()
    return Resources(
        cpus=settings.ray_cpus * _processes(options) if own.cpus is None else own.cpus,
        gpus=(settings.ray_gpus if options.devices else 0.0) if own.gpus is None else own.gpus,
        memory=float(options.memory_limit if own.memory is None else own.memory),
        others=own.resources,
    )


def _processes(options: PoolOptions) -> int:
    """Return the number of a replica's processes."""
    return options.preprocess_workers + 1 + options.postprocess_workers
