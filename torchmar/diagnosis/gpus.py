"""Whether the GPUs of the machine are ones that workers will use."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from torchmar.diagnosis.finding import Finding, error, ok, warning

_SECONDS = 60
_QUERY = ("--query-gpu=index,name,memory.total,memory.used,driver_version", "--format=csv,noheader,nounits")
_PROBE = "import json, torch; print(json.dumps([torch.version.cuda, torch.cuda.is_available()]))"
_FULL = 0.9


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi tells of it; memory in MiB, None where it does not tell: shared memory, or MIG."""

    index: int
    name: str
    total: int | None
    used: int | None
    driver: str


def check() -> Iterator[Finding]:
    """Yield the GPUs, and why workers would not use them."""
    if not shutil.which("nvidia-smi"):
        yield ok("gpus", "no nvidia-smi, with which servers count GPUs: workers run on the CPU")
        return
    try:
        ran = subprocess.run(["nvidia-smi", *_QUERY], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as problem:
        yield error("gpus", f"nvidia-smi does not run: {problem}", "reinstall the driver, or restart the machine")
        return
    found = parse(ran.stdout) if ran.returncode == 0 else []
    if not found:
        document = (ran.stdout + ran.stderr).strip().splitlines() or ["nothing"]
        yield error(
            "gpus", f"nvidia-smi knows no GPU; it says {document[-1]}", "reinstall the driver, or restart the machine"
        )
        return
    for gpu in found:
        if gpu.total is None or gpu.used is None:
            yield ok("gpus", f"GPU {gpu.index}: {gpu.name}, driver {gpu.driver}; it does not tell of its memory")
            continue
        yield ok("gpus", f"GPU {gpu.index}: {gpu.name}, {gpu.used} of {gpu.total} MiB used, driver {gpu.driver}")
        if gpu.used > _FULL * gpu.total:
            yield warning(
                "gpus",
                f"GPU {gpu.index} has {gpu.total - gpu.used} MiB left",
                "nvidia-smi says who uses it; deviceIds in model-config.yaml names other GPUs",
            )
    yield from _torch(found)


def parse(text: str) -> list[Gpu]:
    """Return the GPUs in what nvidia-smi prints as CSV; a line that is none is left out."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 5 and cells[0].isdigit():
            total, used = (int(cell) if cell.isdigit() else None for cell in cells[2:4])
            found.append(Gpu(int(cells[0]), cells[1], total, used, cells[4]))
    return found


def _torch(found: list[Gpu]) -> Iterator[Finding]:
    try:
        torch = importlib.metadata.version("torch")
        ran = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_SECONDS)
        cuda, available = json.loads(ran.stdout.splitlines()[-1])
    except (importlib.metadata.PackageNotFoundError, subprocess.TimeoutExpired, ValueError, IndexError):
        return  # which is a finding about Python
    if cuda is None:
        yield warning(
            "gpus",
            f"torch {torch} is built without CUDA: workers are given a GPU and compute on the CPU",
            "pip install --force-reinstall torch, from PyPI or another index than .../whl/cpu",
        )
    elif not available:
        yield error(
            "gpus",
            f"torch {torch} wants CUDA {cuda}, which driver {found[0].driver} does not offer",
            "install a newer driver, or a torch for the CUDA version that nvidia-smi shows",
        )
