"""The processes of a cluster on this machine: Ray's own, and those of the replicas of a group of servers."""

from __future__ import annotations

import contextlib
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import psutil

from torchmar.connection.local import is_local

_NAME = "torchmar"
# Modules in command lines of Ray's processes; the last one is that of a node.
_HEAD, _SESSION, _NODE = "--gcs-address=", "--session-name=", "--node_ip_address="
# Ray's process titles of actors and of its own agents; all of them begin with _TITLE.
_TITLE = "ray::"
_RAYS = ("ServeController", "DashboardAgent", "RuntimeEnvAgent", "IDLE")
_GROUPS = ("Directory", "ContentReader")  # actors of `torchmar.cluster`
_LOADER_GROUP = "--torchmar-group="  # argument of `torchmar.cluster.loader_process`


def group_name(group: str) -> str:
    """Return the name of a group of servers in a cluster; no other group's name begins with it and a colon."""
    return f"{_NAME}-{group}" if group else _NAME


def loader_words(head: str, group: str) -> list[str]:
    """Return the arguments by which `ClusterGroup` recognises a process of `torchmar.cluster.loader_process`.

    Args:
        head: address of the cluster's head.
        group: name of the group, as `group_name` returns it.
    """
    return [f"{_HEAD}{head}", f"{_LOADER_GROUP}{group}"]


@dataclass(frozen=True)
class ClusterGroup:
    """A group of servers on a cluster.

    Attributes:
        address: address of the cluster's head, ``HOST:PORT``.
        group: ``torchmar_ray_group`` of the servers; empty: not set.
    """

    address: str
    group: str = ""

    def processes(self) -> list[psutil.Process]:
        """Return the processes on this machine of Ray and of the group's replicas, without the servers.

        Actors and tasks of other programs are left out. The call takes milliseconds: it reads all processes of the
        machine.
        """
        children: dict[int, list[psutil.Process]] = defaultdict(list)
        words: dict[psutil.Process, Sequence[str]] = {}
        for process in psutil.process_iter(["ppid", "cmdline"]):
            children[process.info["ppid"]].append(process)
            words[process] = process.info["cmdline"] or ()
        of_head = [process for process, argv in words.items() if any(map(self._is_head, _values(argv, _HEAD)))]
        sessions = {name for process in of_head for name in _values(words[process], _SESSION)}
        # The command line of the head itself does not contain its address.
        of_session = [process for process, argv in words.items() if sessions.intersection(_values(argv, _SESSION))]
        members: dict[psutil.Process, None] = {}
        pending = [*of_head, *of_session]
        while pending:
            process = pending.pop()
            if process not in members and self._belongs(words[process]):
                members[process] = None
                pending += children[process.pid]
        return list(members)

    def _is_head(self, address: str) -> bool:
        return _equal(address, self.address)

    def _belongs(self, words: Sequence[str]) -> bool:
        """Return whether a process belongs to Ray or to the group, and is no actor, task or loader of others."""
        for group in _values(words, _LOADER_GROUP):
            return group == group_name(self.group)
        title = words[0] if words else ""
        own_title = f"ServeReplica:{group_name(self.group)}:"
        return not title.startswith(_TITLE) or title.removeprefix(_TITLE).startswith((own_title, *_RAYS, *_GROUPS))


def node_addresses(processes: Iterable[psutil.Process]) -> set[str]:
    """Return the addresses of nodes in command lines of processes."""
    addresses: set[str] = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            addresses.update(_values(process.cmdline(), _NODE))
    return addresses


def _values(words: Sequence[str], option: str) -> Iterator[str]:
    return (word.removeprefix(option) for word in words if word.startswith(option))


def _equal(first: str, second: str) -> bool:
    """Return whether two addresses belong to the same head."""
    (host, _, port), (other_host, _, other_port) = first.rpartition(":"), second.rpartition(":")
    if port != other_port:
        return False
    return host == other_host or _resolved(host) == _resolved(other_host) or (is_local(host) and is_local(other_host))


def _resolved(host: str) -> str:
    with contextlib.suppress(OSError):
        return socket.gethostbyname(host.strip("[]"))
    return host
