"""System metrics of the machine: processor, memory, disk, GPUs; by TorchServe's names and units."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil

from torchmar.gpus import Nvml

_MEGABYTE, _GIGABYTE = 2**20, 2**30


class SystemMetrics:
    """The metrics of the machine; the processor's load is that since the previous `collect`."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # because the first call has no interval to measure
        self._nvml = Nvml()

    def collect(self) -> Iterator[tuple[str, float]]:
        """Yield the machine's metrics: percents, megabytes of memory, gigabytes of disk."""
        yield "CPUUtilization", psutil.cpu_percent()
        memory = psutil.virtual_memory()
        yield "MemoryUsed", memory.used / _MEGABYTE
        yield "MemoryAvailable", memory.available / _MEGABYTE
        yield "MemoryUtilization", memory.percent
        disk = psutil.disk_usage("/")
        yield "DiskUsage", disk.used / _GIGABYTE
        yield "DiskAvailable", disk.free / _GIGABYTE
        yield "DiskUtilization", disk.percent

    def gpus(self) -> Iterator[tuple[str, str, float]]:
        """Yield the metrics of each GPU, by its index."""
        for gpu in self._nvml.usage():
            index = str(gpu.index)
            yield index, "GPUMemoryUsed", gpu.memory_used / _MEGABYTE
            yield index, "GPUMemoryUtilization", 100 * gpu.memory_used / gpu.memory_total
            if gpu.utilization is not None:
                yield index, "GPUUtilization", gpu.utilization


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
