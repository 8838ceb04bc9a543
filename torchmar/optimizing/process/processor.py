"""The processor flags that a variant needs, as found on the processor of its measurement."""

from __future__ import annotations

from collections.abc import Sequence

#: Flags of x86 and ARM processors that compute in a type; without any of them it is emulated, and slow.
FLAGS = {
    "bfloat16": ("amx_bf16", "avx512_bf16", "bf16"),
    "float16": ("amx_fp16", "avx512_fp16", "fphp"),
    "int8": ("amx_int8", "avx512_vnni", "avx_vnni", "asimddp"),
}


def flags() -> frozenset[str]:
    """Return the flags of this processor, as a worker sees them; empty if they are unknown."""
    from torchmar_handlers.weights import machine

    return machine.cpu_flags()


def needs(dtype: str) -> tuple[str, ...]:
    """Return the requirement of a variant that computes in a type: any of the type's flags that this processor has.

    Returns:
        Empty if this processor has none of them: then the variant was as slow here as elsewhere.
    """
    own_flags = flags()
    present = [flag for flag in FLAGS[dtype] if flag in own_flags]
    return ("|".join(present),) if present else ()


def all_of(required: Sequence[str]) -> tuple[str, ...]:
    """Return each flag of ``required`` that this processor has as a requirement of its own."""
    own_flags = flags()
    return tuple(flag for flag in required if flag in own_flags)
