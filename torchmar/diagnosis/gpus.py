"""The check of the machine's GPUs, and whether torch can use them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from torchmar import gpus
from torchmar.diagnosis import worker_python
from torchmar.diagnosis.finding import Finding, error, ok, warning
from torchmar.package_versions import installed_version

_SECONDS = 60
_PROBE = "import json, torch; print(json.dumps([torch.version.cuda, torch.cuda.is_available()]))"
_FULL = 0.9


@dataclass(frozen=True)
class Gpu:
    """A GPU; memory in MiB, None if nvidia-smi does not report it: shared memory, or MIG."""

    index: int
    name: str
    total: int | None
    used: int | None
    driver: str


def check() -> Iterator[Finding]:
    """Yield the GPUs, and the reason if workers cannot use them."""
    if not gpus.has_nvidia_smi():
        yield ok("gpus", "no nvidia-smi, by which servers count GPUs: workers run on the CPU")
        return
    try:
        rows = gpus.query("name", "memory.total", "memory.used", "driver_version")
    except gpus.NvidiaSmiError as problem:
        yield error("gpus", f"nvidia-smi {problem}", "reinstall the driver, or restart the machine")
        return
    present = [_gpu(index, values) for index, values in rows.items()]
    for gpu in present:
        if gpu.total is None or gpu.used is None:
            yield ok("gpus", f"GPU {gpu.index}: {gpu.name}, driver {gpu.driver}; nvidia-smi does not report its memory")
            continue
        yield ok("gpus", f"GPU {gpu.index}: {gpu.name}, {gpu.used} of {gpu.total} MiB used, driver {gpu.driver}")
        if gpu.used > _FULL * gpu.total:
            yield warning(
                "gpus",
                f"GPU {gpu.index} has {gpu.total - gpu.used} MiB left",
                "nvidia-smi shows the processes that use it; deviceIds in model-config.yaml names other GPUs",
            )
    yield from _torch(present)


def _gpu(index: int, values: list[str]) -> Gpu:
    name, total, used, driver = values
    return Gpu(index, name, _mebibytes(total), _mebibytes(used), driver)


def _mebibytes(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _torch(present: list[Gpu]) -> Iterator[Finding]:
    if not (torch := installed_version("torch")):
        return  # the check of Python reports it
    try:
        process = worker_python.run(_PROBE, _SECONDS)
        cuda, available = json.loads(process.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return  # the check of Python reports it
    if cuda is None:
        yield warning(
            "gpus",
            f"torch {torch} is built without CUDA: workers compute on the CPU, though they have a GPU",
            "pip install --force-reinstall torch, from PyPI or another index than .../whl/cpu",
        )
    elif not available:
        yield error(
            "gpus",
            f"torch {torch} needs CUDA {cuda}, which driver {present[0].driver} does not support",
            "install a newer driver, or a torch for the CUDA version that nvidia-smi shows",
        )
