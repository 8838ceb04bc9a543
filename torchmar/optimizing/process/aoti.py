"""AOTInductor: the program of torch.export, compiled to machine code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from torchmar.conversion import exporters
from torchmar.optimizing.process import exporting, processor
from torchmar.optimizing.process.captured import Captured
from torchmar.optimizing.process.jobs import Made, NotApplicable
from torchmar.optimizing.process.source import Source

FILE = "model.pt2"

# The names of inductor's vector instructions in /proc/cpuinfo.
_INSTRUCTIONS = {
    "avx512": ("avx512f", "avx512dq", "avx512vl", "avx512bw", "fma"),
    "avx2": ("avx2", "fma"),
    "amx": ("amx_tile", "amx_bf16", "amx_int8"),
    "bf16": ("avx512_bf16",),
    "vnni": ("avx512_vnni",),
}


# Each size of matrix is compiled in several ways and timed, which takes ten seconds.
_MOST_SIZES = 12
_PACKED = {"freezing": True}  # weights as constants, in the layout of the instructions
_TIMED = {"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}


def make_aoti(source: Source, inputs: Sequence[Captured], folder: Path, dtype: str | None = None) -> Made:
    """Compile the weights for this kind of processor, or for the GPU.

    Args:
        source: the original.
        inputs: recorded inputs.
        folder: folder for the file.
        dtype: type of the weights; None: unchanged.

    Raises:
        NotApplicable: the weights are not torch's, or this processor does not compute with ``dtype``.
        Rejected: the weights cannot be compiled, or there is no C++ compiler.
    """
    needs: tuple[str, ...] = ()
    if dtype is not None and not (needs := processor.needs(dtype)):
        raise NotApplicable(f"this processor has no instructions for {dtype}")
    program = exporting.program(source, inputs, None if dtype is None else getattr(torch, dtype))
    exporters.to_aoti(program, (), (), folder / FILE, settings={} if dtype is None else settings(program))
    needs += _needs() if source.device.type == "cpu" else _capability(source.device)
    return Made(files=(FILE,), needs=needs)


def settings(program: ExportedProgram) -> dict[str, Any]:
    """Return the compiler's settings for weights of fewer bits.

    For products with few rows, such as the tokens of a text, torch's own code takes a fifth to three fifths of oneDNN's
    time where it is faster; only timing both shows where. Convolutions always use oneDNN.
    """
    nodes = [(str(node.target), node) for node in program.graph.nodes]
    products = {tuple(node.args[1].meta["val"].shape) for name, node in nodes if name.startswith("aten.linear")}
    convolutions = any("conv" in name for name, _ in nodes)
    return _PACKED | (_TIMED if not convolutions and len(products) <= _MOST_SIZES else {})


def _needs() -> tuple[str, ...]:
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    isa = str(pick_vec_isa()).lower()
    flags = [flag for name, names in _INSTRUCTIONS.items() if name in isa for flag in names]
    return processor.all_of(flags)


def _capability(device: torch.device) -> tuple[str, ...]:
    major, minor = torch.cuda.get_device_capability(device)
    return (f"cuda>={major}.{minor}",)
