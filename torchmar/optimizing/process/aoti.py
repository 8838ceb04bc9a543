"""AOTInductor: the program of torch.export, compiled to machine code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from torchmar.conversion import exporters
from torchmar.optimizing.process import exporting, processor
from torchmar.optimizing.process.captured import Captured
from torchmar.optimizing.process.jobs import Made
from torchmar.optimizing.process.source import Source

FILE = "model.pt2"

# What inductor's vector instructions are called in /proc/cpuinfo.
_INSTRUCTIONS = {
    "avx512": ("avx512f", "avx512dq", "avx512vl", "avx512bw", "fma"),
    "avx2": ("avx2", "fma"),
    "amx": ("amx_tile",),
    "bf16": ("avx512_bf16",),
    "vnni": ("avx512_vnni",),
}


def make_aoti(source: Source, inputs: Sequence[Captured], folder: Path) -> Made:
    """Compile the weights for this kind of processor, or for the GPU.

    Raises:
        NotApplicable: they are not torch's.
        Rejected: they cannot be compiled, or there is no C++ compiler.
    """
    program = exporting.program(source, inputs)
    exporters.to_aoti(program, (), (), folder / FILE)
    return Made(files=(FILE,), needs=_needs() if source.device.type == "cpu" else _capability(source.device))


def _needs() -> tuple[str, ...]:
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    chosen = str(pick_vec_isa()).lower()
    wanted = [flag for name, names in _INSTRUCTIONS.items() if name in chosen for flag in names]
    return processor.all_of(wanted)


def _capability(device: torch.device) -> tuple[str, ...]:
    major, minor = torch.cuda.get_device_capability(device)
    return (f"cuda>={major}.{minor}",)
