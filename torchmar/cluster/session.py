"""The connection to a cluster: it joins or starts Ray, and deploys and deletes applications of Ray Serve.

All blocking calls run in one thread, so that changes of applications happen one after another.
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
_HEALTH_SECONDS = 2.0  # interval of Ray Serve's checks of a replica
_WAIT_LOOP_SECONDS = 0.1  # interval of Ray Serve's checks whether an ending replica has answered its requests
# Seconds of much demand before replicas are added, and of little before they are removed; Ray's values are 30 and 600.
_UPSCALE_SECONDS, _DOWNSCALE_SECONDS = 5.0, 60.0
_END_SECONDS = 5.0  # limit for the end of this process without the head
_TRIES, _PAUSE_SECONDS = 7, 1.0  # attempts to join; a front that was killed stays listed for five seconds
_HEAD_RESOURCE = "node:__internal_head__"  # Ray's resource of the head's node
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The number of replicas of an application.

    Attributes:
        least: least number of replicas.
        most: largest number of replicas; if more than ``least``, Ray Serve chooses their number by the waiting
            requests.
        needs: resources of each replica.
        batch_size: number of requests that a replica should have at once.
        drain_seconds: time in which a replica may answer its last requests.
    """

    least: int
    most: int
    needs: Resources
    batch_size: int
    drain_seconds: float


class Session:
    """A connection to a cluster.

    Args:
        address: address of the cluster's head, ``HOST:PORT``; empty: start a cluster of this machine alone.
        group: name of the group of fronts that serve the same models; other groups are independent.

    Raises:
        EngineError: there is no such cluster, or Ray cannot be started.

    Attributes:
        node_id: Ray's id of this node.
        head: the head of the cluster.
        directory: the directory, an actor that all fronts share.
        front: name of this front.
        starts_again: whether the process has to start again from the beginning.
    """

    def __init__(self, address: str, group: str = "") -> None:
        self._group = group_name(group)
        self.starts_again = False
        # Set before Ray is imported, which would otherwise send statistics about the cluster.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if address:
            _check_reachable(address)
        else:  # otherwise Ray would listen on all addresses, and run code from any sender
            os.environ[_LOOPBACK_VARIABLE] = "0"
        import ray
        from ray import serve
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        local_options = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options = {"address": address} if address else local_options
        try:
            ray.init(**options, namespace=_NAMESPACE, log_to_driver=False, configure_logging=False)
        except Exception as error:  # Ray raises Exception itself if its processes do not start in time
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
        this_node = self._affinity(self.node_id, soft=False)
        self._reader = ray.remote(ContentReader).options(num_cpus=0, scheduling_strategy=this_node).remote()
        self._contents: dict[str, PackedContent] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray")

    def join(self) -> Standing:
        """Join the cluster, and wait until the leading front is known. Blocking.

        If this front leads, and no other has published models, applications of fronts that have ended are deleted.

        Raises:
            EngineError: the cluster has another release of torchmar.
        """
        while not (standing := self._join()).leader:  # other fronts get time to announce themselves
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
                if not fronts:  # no front of another release is left
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

    def delete_others(self, kept_names: Set[str]) -> None:
        """Delete the applications of all fronts, except ``kept_names``. Blocking."""
        for name in self.applications():
            if name.startswith(f"{self._group}:") and name not in kept_names:
                self.delete(name)

    def _start_serve(self) -> None:
        """Start Ray Serve, if it does not run; without its proxies, because the front answers clients."""
        self._serve.start(proxy_location="Disabled")

    def _open_directory(self) -> Any:
        """Return the directory; start it first if there is none. It outlives this front, and its node.

        It runs on the head's node if possible: the failure of another node would end it together with the front that
        has the shared state.
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
        """Return the resources of the live nodes, by their names: all resources, or the free ones."""
        if free:
            from ray._private.state import available_resources_per_node

            by_id = available_resources_per_node()
        resources = {}
        for node in self._ray.nodes():
            if node["Alive"]:
                amounts = by_id.get(node["NodeID"], {}) if free else node["Resources"]
                resources[f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"] = Resources(
                    cpus=amounts.get("CPU", 0.0),
                    gpus=amounts.get("GPU", 0.0),
                    memory=amounts.get("memory", 0.0),
                    others={name: amount for name, amount in amounts.items() if name not in ("CPU", "GPU", "memory")},
                )
        return resources

    def application_name(self, name: str, version: str) -> str:
        """Return the name of the application of a version, which is unique."""
        # While an actor's method runs, Ray's title of its process contains the part of this name after the last dot.
        quoted = (quote(text, safe="").replace(".", "%2E") for text in (name, version))
        return f"{self._group}:{'@'.join(quoted)}"

    def applications(self) -> dict[str, str]:
        """Return the applications of Ray Serve, each with an error message or an empty text. Blocking.

        The message is Ray Serve's reason why replicas do not start, for those that cannot report it themselves.
        """
        try:
            status = self._serve.status()
        except self._ray.exceptions.ActorDiedError:  # another program has shut down Ray Serve
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
        """Run a blocking function, after those that were passed before."""
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
        """Delete an application, if it exists. Blocking.

        If its replicas end slowly, Ray Serve continues after this returns.
        """
        try:
            self._serve.delete(application)
        except TimeoutError as error:
            logs.SERVER.warning("%s", error)
        except (self._ray.exceptions.ActorDiedError, self._serve.exceptions.RayServeException):
            pass  # another program has shut down Ray Serve, with all applications

    async def replicas(self) -> Mapping[str, list[ReplicaState]]:
        """Return the replicas that have announced themselves, by the key of their pool."""
        replicas: Mapping[str, list[ReplicaState]] = await self.directory.replicas.remote()
        return replicas

    def reader(self, packed: PackedContent) -> Callable[[int], bytes]:
        """Return a function that reads chunks of another front's packed content."""
        return reader(self.directory, packed.digest)

    async def add_content(self, packed: PackedContent) -> None:
        """Make a packed content of this front available to nodes."""
        self._contents[packed.digest] = packed
        await self.directory.add_source.remote(packed.digest, self.front, self._reader, packed.path)

    async def add_contents(self) -> None:
        """Make all packed contents of this front available again, to a directory that was started again."""
        for packed in list(self._contents.values()):
            await self.add_content(packed)

    async def remove_content(self, packed: PackedContent) -> None:
        """Remove a packed content of this front."""
        self._contents.pop(packed.digest, None)
        with contextlib.suppress(Exception):  # Ray may have ended
            if not self.head.lost.is_set():
                await self.directory.remove_source.remote(packed.digest, self.front)
        Path(packed.path).unlink(missing_ok=True)

    def end(self) -> None:
        """End the directory: this front was the last one. Blocking."""
        with contextlib.suppress(Exception):  # Ray may have ended
            self._ray.kill(self.directory)

    def close(self) -> None:
        """Leave the cluster; end it if it has only this machine. Blocking."""
        if self.head.lost.is_set():  # calls of Ray do not return then, and asyncio waits for their threads
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
