"""The connection to a cluster: joins or starts Ray, deploys applications of Ray Serve and deletes them.

Everything that blocks runs in one thread, so that changes of applications follow each other.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from torchmar.cluster.autoscaling import POLICY
from torchmar.cluster.capacity import Resources
from torchmar.cluster.directory import Directory, ReplicaState
from torchmar.cluster.node_archives import PackedContent
from torchmar.cluster.replica import Replica, ReplicaSpec
from torchmar.errors import EngineError

_NAMESPACE = _DIRECTORY = "torchmar"
_PREFIX = "torchmar:"  # of the names of applications
_DEPLOYMENT = "model"
_CALLS = 16  # of the directory at once
_CONNECT_SECONDS = 5.0
_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: Ray's address is 127.0.0.1, as by default on a Mac
_HEALTH_SECONDS = 2.0  # between Ray Serve's checks of a replica
_WAIT_LOOP_SECONDS = 0.1  # until a replica that ends answers its last requests: Ray Serve itself knows of none
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

    Attributes:
        node_id: Ray's id of this node.

    Raises:
        EngineError: there is no such cluster, Ray cannot be started, or another server of torchmar uses the cluster.
    """

    def __init__(self, address: str) -> None:
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
        # The front answers clients: Ray Serve's own proxies are not started.
        serve.start(proxy_location="Disabled")
        self.node_id: str = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        directory = ray.remote(Directory).options(
            name=_DIRECTORY, num_cpus=0, max_concurrency=_CALLS, scheduling_strategy=here
        )
        try:
            self.directory = directory.remote()
        except ValueError:  # the name is taken
            ray.shutdown()
            raise EngineError(
                f"another server of torchmar uses the cluster at {address}",
                hint="stop it, or send requests to it: one server runs a cluster",
            ) from None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray")
        for name in serve.status().applications:
            if name.startswith(_PREFIX):
                serve.delete(name)  # of a server that was killed

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
                    cpus=has.get("CPU", 0.0), gpus=has.get("GPU", 0.0), memory=has.get("memory", 0.0)
                )
        return found

    async def run(self, function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        """Run something that blocks, after what was given before."""
        call = partial(function, *arguments, **keywords)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def deploy(self, application: str, spec: ReplicaSpec, scale: Scale) -> None:
        """Deploy an application, or change the number of its replicas. Blocking."""
        number: dict[str, Any] = {"num_replicas": scale.least}
        if scale.most > scale.least:
            limits = {"min_replicas": scale.least, "max_replicas": scale.most}
            policy = {"policy": {"policy_function": POLICY}, "target_ongoing_requests": scale.batch_size}
            number = {"autoscaling_config": {**limits, **policy}}
        needs = {"num_cpus": scale.needs.cpus, "num_gpus": scale.needs.gpus}
        deployment = self._serve.deployment(
            Replica,
            name=_DEPLOYMENT,
            **number,
            health_check_period_s=_HEALTH_SECONDS,
            graceful_shutdown_timeout_s=scale.drain_seconds,
            graceful_shutdown_wait_loop_s=_WAIT_LOOP_SECONDS,
            ray_actor_options={**needs, **({"memory": scale.needs.memory} if scale.needs.memory else {})},
        )
        # Without a version, Ray Serve replaces all replicas when only their number changes; its command sets it in the
        # same way.
        deployment = deployment.options(version=spec.pool, _internal=True)
        target = self._serve.RunTarget(deployment.bind(spec, self.directory), name=application, route_prefix=None)
        self._serve.run_many([target], wait_for_applications_running=False)

    def delete(self, application: str) -> None:
        """Delete an application, if it is there. Blocking."""
        self._serve.delete(application)

    async def replicas(self) -> Mapping[str, list[ReplicaState]]:
        """Return the replicas that have announced themselves, by the key of their pool."""
        replicas: Mapping[str, list[ReplicaState]] = await self.directory.replicas.remote()
        return replicas

    async def add_content(self, packed: PackedContent) -> None:
        """Make a packed content available to nodes."""
        await self.directory.add_content.remote(packed.digest, packed.path)

    async def remove_content(self, packed: PackedContent) -> None:
        """Remove a packed content."""
        await self.directory.remove_content.remote(packed.digest)
        Path(packed.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the cluster; one of this machine alone ends. Blocking."""
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


def application_name(name: str, version: str) -> str:
    """Return the name of the application of a version; different ones have different names."""
    return f"{_PREFIX}{quote(name, safe='')}@{quote(version, safe='')}"
