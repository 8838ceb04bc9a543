"""The connection to a cluster: joins or starts Ray, deploys applications of Ray Serve and deletes them.

Everything that blocks runs in one thread, so that changes of applications follow each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import torchmar
from torchmar.cluster.autoscaling import POLICY
from torchmar.cluster.capacity import Resources
from torchmar.cluster.content_reader import ContentReader, reader
from torchmar.cluster.directory import Directory, ReplicaState, Standing
from torchmar.cluster.head import Head
from torchmar.cluster.node_contents import PackedContent
from torchmar.cluster.processes import group_name
from torchmar.cluster.replica import Replica, ReplicaSpec
from torchmar.errors import EngineError
from torchmar.server.telemetry import logs

_NAMESPACE = "torchmar"
_DEPLOYMENT = "model"
_CONNECT_SECONDS = 5.0
_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: Ray's address is 127.0.0.1, as by default on a Mac
_HEALTH_SECONDS = 2.0  # between Ray Serve's checks of a replica
_WAIT_LOOP_SECONDS = 0.1  # until a replica that ends answers its last requests: Ray Serve itself knows of none
# That requests must wait before there are more replicas, and be few before there are fewer; Ray's are 30 and 600.
_UPSCALE_SECONDS, _DOWNSCALE_SECONDS = 5.0, 60.0
_END_SECONDS = 5.0  # for the end of this process without the head
_TRIES, _PAUSE_SECONDS = 7, 1.0  # to join; a front that was killed is listed for five seconds
_HEAD_RESOURCE = "node:__internal_head__"  # Ray's, of the head
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many replicas an application has.

    Attributes:
        least: of replicas.
        most: of replicas; more than ``least``: Ray Serve chooses their number by the requests that wait.
        needs: resources of each.
        batch_size: requests of a replica that it should have at once.
        drain_seconds: that a replica may take to answer its last requests.
    """

    least: int
    most: int
    needs: Resources
    batch_size: int
    drain_seconds: float


class Session:
    """A connection to a cluster.

    Args:
        address: of the cluster's head, ``HOST:PORT``; empty: a cluster of this machine alone is started.
        group: of fronts that serve the same; others of the cluster serve what they like.

    Raises:
        EngineError: there is no such cluster, or Ray cannot be started.

    Attributes:
        node_id: Ray's id of this node.
        head: of the cluster.
        directory: the actor that all fronts share.
        front: the name of this front.
        starts_again: whether the process is to be started again, from the beginning.
    """

    def __init__(self, address: str, group: str = "") -> None:
        self._group = group_name(group)
        self.starts_again = False
        # Before Ray is imported: it would send statistics about the cluster.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if address:
            _check_reachable(address)
        else:  # otherwise Ray listens on all addresses of this machine, and runs what it gets there
            os.environ[_LOOPBACK_VARIABLE] = "0"
        import ray
        from ray import serve
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alone = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        where = {"address": address} if address else alone
        try:
            ray.init(**where, namespace=_NAMESPACE, log_to_driver=False, configure_logging=False)
        except Exception as error:  # Ray raises this very class where its processes do not start in time
            where_text = f"the cluster at {address}" if address else "a cluster of this machine"
            raise EngineError(f"{where_text} cannot be used: {error}") from None
        self._ray, self._serve = ray, serve
        self._start_serve()
        context = ray.get_runtime_context()
        self.node_id: str = context.get_node_id()
        self.head = Head(context.gcs_address, os.environ)
        self._affinity = NodeAffinitySchedulingStrategy
        self.front = f"{ray.util.get_node_ip_address()} ({self.node_id[:8]}, process {os.getpid()})"
        self.directory = self._open_directory()
        here = self._affinity(self.node_id, soft=False)
        self._reader = ray.remote(ContentReader).options(num_cpus=0, scheduling_strategy=here).remote()
        self._contents: dict[str, PackedContent] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray")

    def join(self) -> Standing:
        """Take part in the cluster, as soon as it is known which front leads. Blocking.

        If this one leads, and no other has published anything, applications of fronts that have ended are deleted.

        Raises:
            EngineError: the cluster has another release of torchmar.
        """
        while not (standing := self._join()).leader:  # others get the time to announce themselves
            time.sleep(_PAUSE_SECONDS)
        if not standing.revision and standing.leader == self.front:
            self.delete_others(set())
        return standing

    def _join(self) -> Standing:
        for attempt in range(_TRIES):
            try:
                release, fronts = self._ray.get(self.directory.release.remote())
                if release == torchmar.__version__:
                    standing: Standing = self._ray.get(self.directory.join.remote(self.front))
                    return standing
                if not fronts:  # those of another release have left it
                    self._ray.kill(self.directory)
            except self._ray.exceptions.RayError:  # the last front was stopped at this moment
                if attempt == _TRIES - 1:
                    raise
            time.sleep(_PAUSE_SECONDS)
            self.directory = self._open_directory()
        raise EngineError(
            f"the cluster has torchmar {release}, and this server {torchmar.__version__}",
            hint="install one release on all nodes, and stop the servers of another one first",
        )

    def delete_others(self, kept: Set[str]) -> None:
        """Delete all applications of fronts but some. Blocking."""
        for name in self.applications():
            if name.startswith(f"{self._group}:") and name not in kept:
                self.delete(name)

    def _start_serve(self) -> None:
        """Start Ray Serve, if it does not run: without its proxies, since the front answers clients."""
        self._serve.start(proxy_location="Disabled")

    def _open_directory(self) -> Any:
        """Return the directory, which is started if there is none. It outlives this front, and its node.

        It runs beside the head if possible: a node that fails should not take it along with the front that knows what
        is served.
        """
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        head = next((node["NodeID"] for node in alive if _HEAD_RESOURCE in node["Resources"]), self.node_id)
        actor = self._ray.remote(Directory).options(
            name=self._group,
            num_cpus=0,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            scheduling_strategy=self._affinity(head, soft=True),
        )
        return actor.remote()

    def nodes(self, *, free: bool = False) -> dict[str, Resources]:
        """Return the resources of the nodes that are alive, by their names: all, or those that are free."""
        if free:
            from ray._private.state import available_resources_per_node

            by_id = available_resources_per_node()
        found = {}
        for node in self._ray.nodes():
            if node["Alive"]:
                has = by_id.get(node["NodeID"], {}) if free else node["Resources"]
                found[f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"] = Resources(
                    cpus=has.get("CPU", 0.0),
                    gpus=has.get("GPU", 0.0),
                    memory=has.get("memory", 0.0),
                    others={name: amount for name, amount in has.items() if name not in ("CPU", "GPU", "memory")},
                )
        return found

    def application_name(self, name: str, version: str) -> str:
        """Return the name of the application of a version; different ones have different names."""
        # While a method of an actor runs, Ray's title of the process has what follows the last dot of this name.
        quoted = (quote(text, safe="").replace(".", "%2E") for text in (name, version))
        return f"{self._group}:{'@'.join(quoted)}"

    def applications(self) -> dict[str, str]:
        """Return the applications of Ray Serve. Blocking.

        Each with why its replicas do not start, as Ray Serve knows it, where they cannot report it themselves.
        """
        try:
            status = self._serve.status()
        except self._ray.exceptions.ActorDiedError:  # another program has shut Ray Serve down
            self._start_serve()
            status = self._serve.status()
        return {
            name: next(
                (
                    deployment.message
                    for deployment in application.deployments.values()
                    if deployment.status_trigger == "REPLICA_STARTUP_FAILED"
                ),
                "",
            )
            for name, application in status.applications.items()
        }

    async def run(self, function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        """Run something that blocks, after what was given before."""
        call = partial(function, *arguments, **keywords)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def deploy(self, application: str, spec: ReplicaSpec, scale: Scale) -> None:
        """Deploy an application, or change the number of its replicas. Blocking."""
        self._start_serve()
        number: dict[str, Any] = {"num_replicas": scale.least}
        if scale.most > scale.least:
            limits = {"min_replicas": scale.least, "max_replicas": scale.most}
            policy = {"policy": {"policy_function": POLICY}, "target_ongoing_requests": scale.batch_size}
            delays = {"upscale_delay_s": _UPSCALE_SECONDS, "downscale_delay_s": _DOWNSCALE_SECONDS}
            number = {"autoscaling_config": {**limits, **policy, **delays}}
        needs = {
            "num_cpus": scale.needs.cpus,
            "num_gpus": scale.needs.gpus,
            **({"memory": scale.needs.memory} if scale.needs.memory else {}),
            **({"resources": dict(scale.needs.others)} if scale.needs.others else {}),
        }
        deployment = self._serve.deployment(
            Replica,
            name=_DEPLOYMENT,
            **number,
            health_check_period_s=_HEALTH_SECONDS,
            graceful_shutdown_timeout_s=scale.drain_seconds,
            graceful_shutdown_wait_loop_s=_WAIT_LOOP_SECONDS,
            ray_actor_options=needs,
        )
        # Without a version, Ray Serve replaces all replicas when only their number changes; its command sets it in the
        # same way.
        deployment = deployment.options(version=spec.pool, _internal=True)
        target = self._serve.RunTarget(deployment.bind(spec, self.directory), name=application, route_prefix=None)
        self._serve.run_many([target], wait_for_applications_running=False)

    def delete(self, application: str) -> None:
        """Delete an application, if it is there. Blocking.

        Where its replicas take long to end, Ray Serve goes on to delete it.
        """
        try:
            self._serve.delete(application)
        except TimeoutError as error:
            logs.SERVER.warning("%s", error)
        except (self._ray.exceptions.ActorDiedError, self._serve.exceptions.RayServeException):
            pass  # another program has shut Ray Serve down, with all applications

    async def replicas(self) -> Mapping[str, list[ReplicaState]]:
        """Return the replicas that have announced themselves, by the key of their pool."""
        replicas: Mapping[str, list[ReplicaState]] = await self.directory.replicas.remote()
        return replicas

    def reader(self, packed: PackedContent) -> Callable[[int], bytes]:
        """Return what reads chunks of a packed content of another front."""
        return reader(self.directory, packed.digest)

    async def add_content(self, packed: PackedContent) -> None:
        """Make a packed content of this front available to nodes."""
        self._contents[packed.digest] = packed
        await self.directory.add_source.remote(packed.digest, self.front, self._reader, packed.path)

    async def add_contents(self) -> None:
        """Make all of them available again, to a directory that was started again."""
        for packed in list(self._contents.values()):
            await self.add_content(packed)

    async def remove_content(self, packed: PackedContent) -> None:
        """Remove a packed content of this front."""
        self._contents.pop(packed.digest, None)
        with contextlib.suppress(Exception):  # of Ray, which may have ended
            if not self.head.lost.is_set():
                await self.directory.remove_source.remote(packed.digest, self.front)
        Path(packed.path).unlink(missing_ok=True)

    def end(self) -> None:
        """End the directory: this front was the last one. Blocking."""
        with contextlib.suppress(Exception):  # of Ray, which may have ended
            self._ray.kill(self.directory)

    def close(self) -> None:
        """Leave the cluster; one of this machine alone ends. Blocking."""
        if self.head.lost.is_set():  # calls of Ray do not return, and the loop's end waits for their threads
            self._thread.shutdown(wait=False, cancel_futures=True)
            ending = threading.Timer(_END_SECONDS, os._exit, (1,))
            ending.daemon = True
            ending.start()
            return
        self._thread.shutdown()
        self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise EngineError if nothing listens at an address; Ray would try it for a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise EngineError(
            f"no cluster of Ray answers at {address!r}: {error}",
            hint="ray start --head prints the address of a cluster, such as 10.0.0.1:6379",
        ) from None
