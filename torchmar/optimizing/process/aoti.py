"""AOTInductor: the program of torch.export, compiled to machine code."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from torchmar.optimizing.process import exporting, processor
from torchmar.optimizing.process.captured import Captured
from torchmar.optimizing.process.jobs import Made, NotApplicable
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
        NotApplicable: they are not torch's, or there is no C++ compiler.
    """
    require_compiler()
    program = exporting.program(source, inputs)
    # Weights become constants, which are laid out for oneDNN's convolutions and products.
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(folder / FILE), inductor_configs={"freezing": True}
    )
    return Made(files=(FILE,), needs=_needs() if source.device.type == "cpu" else _capability(source.device))


def require_compiler() -> None:
    """Raise NotApplicable if there is no C++ compiler, which inductor starts."""
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        raise NotApplicable("there is no C++ compiler, which torch's inductor needs: apt-get install g++")


def _needs() -> tuple[str, ...]:
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    chosen = str(pick_vec_isa()).lower()
    wanted = [flag for name, names in _INSTRUCTIONS.items() if name in chosen for flag in names]
    return processor.all_of(wanted)


def _capability(device: torch.device) -> tuple[str, ...]:
    major, minor = torch.cuda.get_device_capability(device)
    return (f"cuda>={major}.{minor}",)
