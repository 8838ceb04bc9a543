"""System metrics of the machine: processor, memory, disk, GPUs; by TorchServe's names and units."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Any

import psutil

_MEGABYTE, _GIGABYTE = 2**20, 2**30


class Machine:
    """The machine, looked at now and then: the processor's load is what it was since the look before.

    GPUs are those that NVIDIA's management library sees, if Python has it (``pynvml``).
    """

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first look says nothing
        self._nvml = _nvml()

    def look(self) -> Iterator[tuple[str, float]]:
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
        if self._nvml is None:
            return
        for index in range(self._nvml.nvmlDeviceGetCount()):
            # Some virtual GPUs tell nothing; the others need not suffer for it.
            with contextlib.suppress(self._nvml.NVMLError):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                yield str(index), "GPUMemoryUsed", memory.used / _MEGABYTE
                yield str(index), "GPUMemoryUtilization", 100 * memory.used / memory.total
                yield str(index), "GPUUtilization", float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _nvml() -> Any:
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
    except Exception:  # not installed, or no driver: whatever it is, there are no GPUs to tell of
        return None
    return pynvml
