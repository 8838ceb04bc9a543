"""Features of a machine that optimised weights may need: flags of its processor, compute capability of a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

#: The environment variable with flags to hide, separated by commas or spaces; for tests of a fallback.
MASK = "TORCHMAR_MASK_CPU_FLAGS"

_CPUINFO = Path("/proc/cpuinfo")
_CUDA = re.compile(r"cuda(?:>=(\d+)\.(\d+))?")
# Linux's names of flags that have other names on macOS; other flags have the same name in small letters.
_OF_APPLE = {
    "feat_bf16": "bf16",
    "feat_dotprod": "asimddp",
    "feat_fp16": "asimdhp",
    "feat_i8mm": "i8mm",
    "feat_sme": "sme",
    "avx1.0": "avx",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "advsimd": "asimd",
}


def missing(needs: Sequence[str], device: torch.device) -> str:
    """Return the missing features of this machine, in words; empty: it has all of them.

    Args:
        needs: flags of the processor, as in ``/proc/cpuinfo`` (``avx512_bf16``), or ``cuda>=8.0``: a GPU of
            at least this compute capability. One of several alternatives, separated by ``|``, is enough.
        device: device of the worker.
    """
    flags: frozenset[str] | None = None
    for need in needs:
        alternatives = [name.strip() for name in need.split("|")]
        gpus = [name for name in alternatives if _CUDA.fullmatch(name)]
        if any(_has_gpu(name, device) for name in gpus):
            continue
        flags = cpu_flags() if flags is None else flags
        names = [name for name in alternatives if name not in gpus]
        if not any(name in flags for name in names):
            parts = [
                *([_without_flags(names, flags)] if names else []),
                *(_without_gpu(name, device) for name in gpus),
            ]
            return ", and ".join(parts)
    return ""


def cpu_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Return the flags that all processors of this machine have, without those that `MASK` names.

    They are the ``flags`` (x86) or ``Features`` (ARM) of ``/proc/cpuinfo``. On macOS, they are those of ``sysctl``
    with the names of Linux. On other systems, none are known.
    """
    masked = re.split(r"[\s,]+", os.environ.get(MASK, ""))
    return frozenset((_of_macos() if sys.platform == "darwin" else _of_linux(cpuinfo)) - set(masked))


def _of_linux(cpuinfo: Path) -> set[str]:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    # Processors of one machine may differ, and a thread may run on any of them.
    listed = [set(line.split()) for line in re.findall(r"^(?:flags|Features)[ \t]*:(.*)$", text, re.MULTILINE)]
    return set.intersection(*listed) if listed else set()


def _of_macos() -> set[str]:
    try:
        text = subprocess.run(
            ["sysctl", "hw.optional", "machdep.cpu"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return set()
    names = re.findall(r"^hw\.optional\.(?:arm\.)?(\w+): 1$", text, re.MULTILINE)
    for line in re.findall(r"^machdep\.cpu\.\w*features: (.*)$", text, re.MULTILINE):
        names += line.split()
    return {_OF_APPLE.get(name.lower(), name.lower()) for name in names}


def _has_gpu(need: str, device: torch.device) -> bool:
    match = _CUDA.fullmatch(need)
    if match is None or device.type != "cuda" or torch.version.hip:
        return False
    return match[1] is None or torch.cuda.get_device_capability(device) >= (int(match[1]), int(match[2]))


def _without_flags(names: Sequence[str], flags: frozenset[str]) -> str:
    if not flags:
        return f"the flags of this processor are not known, and {' or '.join(names)} is needed"
    if len(names) == 1:
        return f"this processor has no {names[0]}"
    return f"this processor has neither {' nor '.join(names)}"


def _without_gpu(need: str, device: torch.device) -> str:
    if device.type != "cuda":
        return f"this worker has no GPU, and {need} is needed"
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return f"this GPU has the compute capability {capability}, and {need} is needed"
