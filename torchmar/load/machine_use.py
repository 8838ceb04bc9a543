"""CPU time and memory of the client, of a local server, and of all other programs on the machine."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from torchmar.cluster.processes import ClusterGroup
from torchmar.load.results import Machine, ServerProcesses

_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "sve",
)


def describe() -> Machine:
    """Return the machine that this process runs on."""
    processor, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):  # the file is missing on macOS
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                processor = value.strip()
            if name.strip() in ("flags", "Features"):
                flags = value
    own_flags = flags.split()
    return Machine(
        processor=processor,
        cores=len(cores()),
        flags=tuple(flag for flag in _FLAGS if flag in own_flags),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class Use:
    """The use of a machine between two readings.

    Attributes:
        seconds: the time between the readings.
        client_cores: average number of cores that this process used, with its child processes if they were read.
        server_cores: cores of the server; None: its process is not known.
        other_cores: cores of all other programs; None: the server's share is unknown.
    """

    seconds: float
    client_cores: float
    server_cores: float | None
    other_cores: float | None


class Reading:
    """The CPU times of this process, of a server and of the machine at one moment.

    Args:
        server: the server's processes; None: they are not known.
        local: whether the server is on this machine.
        children: whether the use of child processes counts as that of this process, for example a compiler that it
            starts; the server must not be one of them.
    """

    def __init__(self, server: Sequence[psutil.Process] | None, local: bool, *, children: bool = False) -> None:
        self._known = server is not None or not local
        self._times = None if server is None else _times(server)
        self._busy = _busy_seconds()
        self._client = time.process_time() + (_children_seconds() if children else 0.0)
        self._at = time.perf_counter()

    def add(self, server: Sequence[psutil.Process]) -> None:
        """Read the times of server processes that were not known at the moment of this reading."""
        if (times := self._times) is not None:
            times |= _times([process for process in server if process not in times])

    def use_until(self, later: Reading) -> Use:
        """Return the use of the machine from this reading to a later one."""
        seconds = max(later._at - self._at, 1e-9)
        client = later._client - self._client
        earlier, now = self._times or {}, later._times or {}
        server = sum(max(0.0, spent - earlier.get(process, 0.0)) for process, spent in now.items())
        other = max(0.0, later._busy - self._busy - client - server)
        return Use(
            seconds,
            client / seconds,
            None if later._times is None else server / seconds,
            other / seconds if self._known else None,
        )


def _busy_seconds() -> float:
    """Return the seconds that the cores available to this process have computed for any program.

    Interrupts do not count, because those of the measured connections belong to no process.
    """
    per_core = psutil.cpu_times(percpu=True)
    counted = [per_core[number] for number in cores() if number < len(per_core)]
    return sum(times.user + times.system + getattr(times, "nice", 0) + getattr(times, "steal", 0) for times in counted)


def _children_seconds() -> float:
    """Return the CPU seconds of all descendants of this process, running and ended."""
    times = os.times()
    seconds = times.children_user + times.children_system
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            spent = process.cpu_times()
            # Including its ended children, which macOS and Windows do not count.
            seconds += spent.user + spent.system + spent.children_user + spent.children_system
    return seconds


def _times(processes: Sequence[psutil.Process]) -> dict[psutil.Process, float]:
    """Return the CPU seconds of processes; this takes about 30 microseconds for each."""
    times = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            spent = process.cpu_times()
            times[process] = spent.user + spent.system
    return times


def describe_processes(processes: Sequence[psutil.Process], cpu_cores: float) -> ServerProcesses | None:
    """Return the number and memory of a server's processes, with the cores that they used; None if all have ended."""
    count = memory = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            try:
                full = process.memory_full_info()
                memory += getattr(full, "pss", full.uss)
            except psutil.AccessDenied:  # a process of another user
                memory += process.memory_info().rss
            count += 1
    return ServerProcesses(count=count, cpu_cores=cpu_cores, memory_bytes=memory) if count else None


def server_processes(pid: int, cluster: ClusterGroup | None = None) -> list[psutil.Process]:
    """Return a server's processes on this machine: its process tree, and those of a cluster, which Ray starts.

    This takes milliseconds, because it reads all processes of the machine.
    """
    processes: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    return list(dict.fromkeys([*processes, *(cluster.processes() if cluster else ())]))
