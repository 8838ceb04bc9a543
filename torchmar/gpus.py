"""The GPUs of this machine, by nvidia-smi and by NVIDIA's management library (NVML)."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_TIMEOUT_SECONDS = 30.0


class NvidiaSmiError(Exception):
    """nvidia-smi does not run, or reports no GPU; the message is a clause after "nvidia-smi"."""


def has_nvidia_smi(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether nvidia-smi is installed."""
    return shutil.which("nvidia-smi", path=environment.get("PATH")) is not None


def query(
    *fields: str,
    units: bool = False,
    timeout_s: float = _TIMEOUT_SECONDS,
    environment: Mapping[str, str] = os.environ,
) -> dict[int, list[str]]:
    """Return the values of fields of every GPU, by its index; blocking.

    Args:
        fields: names of the fields in ``nvidia-smi --help-query-gpu``.
        units: whether numbers have their units: ``3 %``, ``612 MiB``.
        timeout_s: seconds after which nvidia-smi is killed.
        environment: environment variables, including ``PATH``.

    Raises:
        NvidiaSmiError: nvidia-smi is not installed, does not run, or reports no GPU.
    """
    command = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if command is None:
        raise NvidiaSmiError("is not installed")
    options = f"--query-gpu={','.join(('index', *fields))}", f"--format=csv,noheader{'' if units else ',nounits'}"
    try:
        result = subprocess.run([command, *options], capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NvidiaSmiError(f"does not run: {error}") from None
    rows = [[cell.strip() for cell in line.split(",")] for line in result.stdout.splitlines()]
    gpus = {int(row[0]): row[1:] for row in rows if row[0].isdigit() and len(row) == 1 + len(fields)}
    if result.returncode or not gpus:
        lines = (result.stdout + result.stderr).strip().splitlines() or ["nothing"]
        raise NvidiaSmiError(f"reports no GPU, but: {lines[-1]}")
    return gpus


def memory_sizes() -> tuple[int, ...]:
    """Return the bytes of memory of each GPU; empty: there is no GPU, or one does not report its memory."""
    try:
        return tuple(int(total) * 2**20 for (total,) in query("memory.total").values())
    except (NvidiaSmiError, ValueError):
        return ()


def count(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of GPUs for workers: those of nvidia-smi, or fewer if ``CUDA_VISIBLE_DEVICES`` lists fewer."""
    try:
        installed = len(query(environment=environment))
    except NvidiaSmiError:
        return 0
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return installed
    names = [name.strip() for name in visible.split(",")]
    end = next((index for index, name in enumerate(names) if name in ("", "-1")), len(names))  # as CUDA reads it
    return min(installed, end)


@dataclass(frozen=True, kw_only=True)
class GpuUsage:
    """The usage of a GPU: bytes of memory, and percent of the time in which it computed; None: not reported."""

    index: int
    memory_used: int
    memory_total: int
    utilization: float | None


class Nvml:
    """NVIDIA's management library, which answers in microseconds; it has no GPUs if Python lacks it (``pynvml``)."""

    def __init__(self) -> None:
        self._pynvml: Any = None
        with contextlib.suppress(Exception):  # not installed, or no driver
            pynvml = importlib.import_module("pynvml")
            pynvml.nvmlInit()
            self._pynvml = pynvml

    def usage(self) -> Iterator[GpuUsage]:
        """Yield the usage of each GPU that reports its memory; some virtual GPUs do not."""
        nvml = self._pynvml
        for index in range(nvml.nvmlDeviceGetCount()) if nvml else ():
            with contextlib.suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                utilization = None
                with contextlib.suppress(nvml.NVMLError):
                    utilization = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
                yield GpuUsage(index=index, memory_used=memory.used, memory_total=memory.total, utilization=utilization)
